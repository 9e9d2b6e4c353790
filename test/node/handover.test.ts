// What is handed over arrives with the receiver's own descriptors, wherever in the description they are.

import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { difference, type Place, pack, unpack } from '../../src/node/handover.ts'

describe('pack', () => {
  it('takes out what is called a descriptor, and nothing else', () => {
    const value = { fd: 7, deep: [{ tapFds: [9, 8], guardFd: -1, fdx: 3, offset: 4 }], linkFd: 7, fds: [] }
    const { text, fds } = pack(value)
    expect(fds).toEqual([7, 9, 8, 7])
    const theirs = fds.map(fd => fd + 100)
    expect(unpack(text, theirs)).toEqual({
      fd: 107,
      deep: [{ tapFds: [109, 108], guardFd: -1, fdx: 3, offset: 4 }],
      linkFd: 107,
      fds: [],
    })
  })

  it('gives back any description as it was', () => {
    const descriptor = fc.integer({ min: -1, max: 1000 })
    const part = fc.record({ mapFd: descriptor, tapFds: fc.array(descriptor), name: fc.string(), mtu: fc.nat() })
    fc.assert(
      fc.property(fc.array(part), value => {
        const { text, fds } = pack(value)
        expect(unpack(text, fds)).toEqual(value)
      }),
    )
  })
})

describe('difference', () => {
  const place: Place = {
    ...{ version: 1, workers: 2, namespace: 7, uplink: 'eth0' },
    ...{ profile: 'geneve', local: '10.0.0.1', port: 6081, rung: 'auto' },
  }

  it('names what differs', () => {
    expect(difference(place, { ...place })).toBe('')
    expect(difference(place, { ...place, workers: 3, port: 4789 })).toBe('workers, port')
  })
})
