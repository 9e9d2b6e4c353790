// Cases about what nobody should send: whatever comes, the next sound packet is served.

import * as geneve from '../../wire/geneve.ts'
import { onlyGeneve, type PacketCase } from '../case.ts'
import type { Maker, Probe } from '../probe.ts'
import { option } from '../profile.ts'

const SOUND = 'RFC 8926 section 6, RFC 7348 section 7; RFC 1122 section 1.2.2 (robustness)'

/** Bytes that look random and are the same each time (a linear congruential generator). */
function noise(bytes: number, seed: number): Uint8Array {
  let state = seed
  return Uint8Array.from({ length: bytes }, () => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0
    return state >>> 16
  })
}

/** Sound packets cut off at each length. */
function truncated(make: Maker): Probe[] {
  const flow = make.flow()
  const whole = make.plain(flow)
  const bytes = whole.packet.length - whole.tunnelAt
  return Array.from({ length: bytes }, (_, cut) => make.plain(flow, { cut, fate: 'either' }))
}

export const RUBBISH_CASES: readonly PacketCase[] = [
  {
    name: 'rubbish-truncated',
    section: SOUND,
    expected: 'packets that are cut off at any length do not stop the endpoint',
    burst: true,
    sends: truncated,
  },
  {
    name: 'rubbish-noise',
    section: SOUND,
    expected: 'random bytes do not stop the endpoint',
    burst: true,
    sends: make => {
      const flow = make.flow()
      return Array.from({ length: 64 }, (_, i) =>
        make.plain(flow, { fate: 'either', edit: tunnel => tunnel.set(noise(tunnel.length, i + 1)) }),
      )
    },
  },
  {
    name: 'rubbish-options',
    section: 'RFC 8926 section 3.5',
    expected: 'option lengths of all kinds do not stop the endpoint',
    without: onlyGeneve,
    burst: true,
    sends: make => {
      const flow = make.flow()
      const options = option(0xfffe, 1, noise(28, 1))
      const probes: Probe[] = []
      for (let words = 0; words < 64; words++)
        for (const length of [0, 1, 6, 8, 31])
          probes.push(
            make.plain(flow, {
              options,
              fate: 'either',
              edit: tunnel => {
                tunnel[0] = words
                tunnel[geneve.HEADER + 3] = length
              },
            }),
          )
      return probes
    },
  },
]
