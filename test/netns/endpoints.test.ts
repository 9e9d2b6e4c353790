// A pool of endpoints: real gateways in namespaces of their own; what each gets is told by tcpdump and tshark.

import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { CLIENT, ECHO, gatewayAddress, POD, Scene, type Script, SERVER, WORLD } from './pool.ts'
import { missing, title } from './support.ts'

const PORT = 7000
const THREE = [1, 2, 3]
const pool = (...more: object[]) => THREE.map((n, i) => ({ name: `gw-${n}`, address: gatewayAddress(n), ...more[i] }))

describe.skipIf(missing !== '')(title('a pool of endpoints'), () => {
  let scene: Scene
  let client: Script

  /** The endpoint row of a gateway. */
  const row = (n: number) => scene.node.source.endpoints!().find(({ name }) => name === `gw-${n}`)!
  const until = async (condition: () => boolean) => {
    while (!condition()) await new Promise(resolve => setTimeout(resolve, 20))
  }
  /** Which gateway got which inner TCP client ports, both directions, since `listen`. */
  const shares = async () => {
    const found: { there: Set<number>; back: Set<number> }[] = []
    for (const n of THREE) {
      const rows = await scene.heard(n, `geneve && tcp.port == ${PORT}`, 'tcp.srcport', 'tcp.dstport', 'ip.dst')
      const there = new Set<number>()
      const back = new Set<number>()
      for (const [from, to, outer] of rows) {
        const port = Number(from) === PORT ? Number(to) : Number(from)
        // What the node sent, and what went back to it.
        if (outer.split(',')[0] === gatewayAddress(n)) (Number(from) === PORT ? back : there).add(port)
      }
      found.push({ there, back })
    }
    return found
  }

  beforeEach(async () => {
    scene = new Scene()
    await scene.forward()
    await Promise.all(THREE.map(n => scene.gateway(n)))
    await (await scene.script(WORLD, ECHO, SERVER[4], PORT)).line('ready')
    client = await scene.script(POD, CLIENT, SERVER[4], PORT)
    await client.line('ready')
  })
  afterEach(() => scene.remove())

  it('shares flows out, both directions of each to one endpoint; a dead one moves only its own, and TCP lives', async () => {
    await scene.start({ endpoints: pool() })
    for (const n of THREE) await scene.listen(n)
    await client.ask('open 60', 'open')
    expect(await client.ask('ping', 'back')).toBe('back 60')
    const before = await shares()
    for (const { there, back } of before) expect([...there].sort()).toEqual([...back].sort())
    const ports = before.flatMap(({ there }) => [...there])
    expect(new Set(ports).size).toBe(60)
    expect(ports).toHaveLength(60)
    expect(before.every(({ there }) => there.size > 0)).toBe(true)
    expect(THREE.map(n => row(n).flows)).toEqual(before.map(({ there }) => there.size))

    await scene.kill(2)
    await until(() => row(2).state === 'down')
    for (const n of THREE) await scene.listen(n)
    expect(await client.ask('ping', 'back')).toBe('back 60')
    const after = await shares()
    const gone = before[1].there
    for (const n of [0, 2]) {
      for (const port of before[n].there) expect(after[n].there.has(port)).toBe(true)
      for (const port of after[n].there) expect(before[n].there.has(port) || gone.has(port)).toBe(true)
      expect([...after[n].there].sort()).toEqual([...after[n].back].sort())
    }
    expect(row(2).flows).toBe(0)
    expect(scene.log.join('\n')).toMatch(/endpoint gw-2 \(10\.99\.0\.12\) does not answer/)
  }, 120_000)
})
