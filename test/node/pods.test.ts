// The pods of a node at real interfaces; the workers are stand-ins that do, or refuse, what they are asked for.

import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { configSchema } from '../../src/control/config.ts'
import { createProtectedMap, PIN_DIRECTORY } from '../../src/node/attachment.ts'
import type { Forwarders } from '../../src/node/forwarders.ts'
import { Pods } from '../../src/node/pods.ts'
import { close } from '../../src/os/libc.ts'
import { createNamespace, deleteNamespace, ipBatch } from '../../src/os/netns.ts'
import { missing, title } from '../netns/support.ts'

const A = `dtp-a-${process.pid}`
const B = `dtp-b-${process.pid}`

/** What the workers open they close. */
class Workers {
  readonly open = new Map<number, number[]>()
  refuses = false

  async attach(inputs: { attachment: number; device: { device: { fd: number } } }[]): Promise<void> {
    const fds = inputs.map(({ device }) => device.device.fd)
    this.open.set(inputs[0].attachment, fds)
    if (this.refuses) throw new Error('no memory')
  }

  async detach(attachment: number): Promise<void> {
    for (const fd of this.open.get(attachment) ?? []) close(fd)
    this.open.delete(attachment)
  }
}

const json = (...args: string[]) => JSON.parse(execFileSync('bpftool', ['-j', ...args], { encoding: 'utf8' }))
const pinned = (id: string, hook: string) => `${PIN_DIRECTORY}/${id}/link_eth0_${hook}`
/** The number of the link that holds a gate, which is another one where the gate was taken off and put on again. */
const link = (id: string, hook: string): number => json('link', 'show', 'pinned', pinned(id, hook)).id

describe.skipIf(missing !== '')(title('pods'), () => {
  let workers: Workers
  let pods: Pods
  let map: number
  /** The IPv4 addresses in the map of protected pods. */
  const isProtected = (address: string) => {
    const key = ['0x80', '0x00', '0x00', '0x00', ...Array(10).fill('0x00'), '0xff', '0xff']
    const own = address.split('.').map(byte => `0x${Number(byte).toString(16).padStart(2, '0')}`)
    const entries: { key: string[] }[] = json('map', 'dump', 'id', `${mapId()}`)
    return entries.some(entry => entry.key.join() === [...key, ...own].join())
  }
  const mapId = (): number => {
    const text = execFileSync('grep', ['map_id', `/proc/${process.pid}/fdinfo/${map}`], { encoding: 'utf8' })
    return Number(text.split(/\s+/)[1])
  }

  beforeEach(() => {
    for (const name of [A, B]) {
      createNamespace(name)
      ipBatch(['link add eth0 type veth peer name far', 'address add 10.244.0.2/24 dev eth0'], name)
      ipBatch(['link set eth0 addrgenmode none up', 'link set far addrgenmode none up'], name)
    }
    workers = new Workers()
    map = createProtectedMap()
    const config = configSchema.parse({ tunnel: { remote: '10.9.9.9' } })
    const steering = { workers: 1, seed: Int32Array.of(1, 2, 3, 4) }
    const forwarders = workers as unknown as Forwarders
    pods = new Pods({ config, forwarders, steering, protectedMap: map, captures: [], log: () => {} })
  })

  afterEach(() => {
    pods.close()
    for (const name of [A, B]) deleteNamespace(name)
  })

  it('one that was intercepted stays so when going on with it fails, one that was not does not become so', async () => {
    const pod = { id: A, namespace: A }
    workers.refuses = true
    await expect(pods.attach(pod)).rejects.toThrow('no memory')
    expect(() => link(A, 'egress')).toThrow()
    workers.refuses = false
    await pods.attach(pod)
    const gates = [link(A, 'egress'), link(A, 'ingress')]
    await pods.withdraw(A)
    workers.refuses = true
    await expect(pods.attach(pod)).rejects.toThrow('no memory')
    expect([link(A, 'egress'), link(A, 'ingress')]).toEqual(gates)
    workers.refuses = false
    await pods.attach(pod)
    expect([link(A, 'egress'), link(A, 'ingress')]).toEqual(gates)
    await pods.detach(A)
    expect(workers.open.size).toBe(0)
  })

  it('a gate that is left alone stays on while the other one is put back', async () => {
    const pod = { id: A, namespace: A }
    await pods.attach(pod)
    for (const [lost, kept] of [
      ['ingress', 'egress'],
      ['egress', 'ingress'],
    ]) {
      const before = link(A, kept)
      rmSync(pinned(A, lost))
      await pods.withdraw(A)
      await pods.attach(pod)
      expect(link(A, kept)).toBe(before)
      expect(pods.get(A)?.isAttached()).toBe(true)
    }
  })

  it('an address that two have stays protected until the last one is gone', async () => {
    await pods.attach({ id: A, namespace: A, addresses: ['10.244.0.2/24', '10.244.0.7/32'] })
    await pods.attach({ id: B, namespace: B, addresses: ['10.244.0.2/24'] })
    expect(['10.244.0.2', '10.244.0.7'].map(isProtected)).toEqual([true, true])
    await pods.detach(A)
    expect(['10.244.0.2', '10.244.0.7'].map(isProtected)).toEqual([true, false])
    await pods.detach(B)
    expect(isProtected('10.244.0.2')).toBe(false)
  })

  it('interfaces whose long names begin alike have a TAP each', async () => {
    const names = ['cluster-net-one', 'cluster-net-two']
    ipBatch(
      names.flatMap((name, i) => [`link add ${name} type veth peer name far${i}`, `link set ${name} up`]),
      A,
    )
    for (const name of names) await pods.attach({ id: `${A}-${name}`, namespace: A, interface: name })
    const taps = pods.attachments.map(({ tapName }) => tapName)
    expect(new Set(taps).size).toBe(2)
    expect(taps.every(tap => tap.length <= 15)).toBe(true)
    expect(pods.attachments.map(attachment => attachment.isAttached())).toEqual([true, true])
  })
})
