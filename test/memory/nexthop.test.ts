// What workers see of the next hop, also in the middle of its being written.
import { describe, expect, it } from 'vitest'
import { NextHop, NextHopView } from '../../src/memory/nexthop.ts'

const A = Uint8Array.of(2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)
const B = Uint8Array.of(2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4)

describe('next hop', () => {
  it('starts with an MTU and no addresses, and tells each change once', () => {
    const hop = new NextHop(1500)
    const view = new NextHopView(hop.handle)
    expect([view.usable, view.mtu]).toEqual([false, 1500])
    expect(view.refresh()).toBe(false)
    hop.publish(1500, A)
    expect(view.refresh()).toBe(true)
    expect([view.usable, view.mtu, ...view.addresses]).toEqual([true, 1500, ...A])
    hop.publish(1500, A)
    expect(view.refresh()).toBe(false)
    hop.publish(1400, A)
    expect(view.refresh()).toBe(true)
    expect(view.mtu).toBe(1400)
    hop.publish(1400, B)
    hop.publish(1400, undefined)
    expect(view.refresh()).toBe(true)
    expect(view.usable).toBe(false)
  })

  it('never shows half of a change', () => {
    const hop = new NextHop(1500)
    hop.publish(1500, A)
    const view = new NextHopView(hop.handle)
    const words = new Int32Array(hop.handle)
    // A writer that was interrupted between its first word and its last.
    words[0]++
    words[2] = 9000
    words[4] = 0x7777
    expect(view.refresh()).toBe(false)
    expect([view.usable, view.mtu, ...view.addresses]).toEqual([true, 1500, ...A])
    words[0]++
    expect(view.refresh()).toBe(true)
    expect(view.mtu).toBe(9000)
  })
})
