// Namespaces, TAPs and BPF objects, as the kernel and iproute2 see them.
import { execFileSync } from 'node:child_process'
import { closeSync, existsSync, readlinkSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { Assembler, HELPER, R0, R1, R2, R3, R4, R6, R10, SKB } from '../../src/os/assembler.ts'
import {
  createArrayMap,
  createHashMap,
  deleteFromMap,
  getPinned,
  loadClassifier,
  lookupMap,
  makePinDirectory,
  pin,
  unpin,
  updateMap,
} from '../../src/os/bpf.ts'
import { msToUnits } from '../../src/os/clock.ts'
import { HEARTBEAT_SIZE, Heartbeat } from '../../src/os/heartbeat.ts'
import { deleteLink, linkInfo } from '../../src/os/link.ts'
import {
  createNamespace,
  deleteNamespace,
  inNamespace,
  ip,
  ipBatch,
  listNamespaces,
  queueDrops,
} from '../../src/os/netns.ts'
import { ALL_OFFLOADS, OFFLOADS, openTap, quietTap } from '../../src/os/tun.ts'
import { missing, title } from './support.ts'

describe.skipIf(missing !== '')(title('os'), () => {
  const namespace = 'dtc-os'
  const here = () => readlinkSync('/proc/thread-self/ns/net')

  beforeAll(() => {
    deleteNamespace(namespace)
    createNamespace(namespace)
  })
  afterAll(() => {
    deleteNamespace(namespace)
    deleteNamespace(namespace)
  })

  it('enters a namespace and always comes back', () => {
    expect(listNamespaces()).toContain(namespace)
    const home = here()
    const there = inNamespace(namespace, here)
    expect(there).not.toBe(home)
    expect(here()).toBe(home)
    expect(inNamespace(`/run/netns/${namespace}`, () => inNamespace('', here))).toBe(there)
    expect(() =>
      inNamespace(namespace, () => {
        throw new Error('inside')
      }),
    ).toThrow('inside')
    expect(here()).toBe(home)
    expect(() => inNamespace('dtc-none', here)).toThrow(/\/run\/netns\/dtc-none does not exist/)
  })

  it('says which command failed, where and why', () => {
    expect(() => ip(['link', 'set', 'nil0', 'up'], namespace)).toThrow(
      /^ip link set nil0 up \(in namespace dtc-os\): Cannot find device "nil0"$/,
    )
    expect(() => ipBatch(['link set lo up', 'link set nil0 up'], namespace)).toThrow(
      /link set lo up; link set nil0 up.*nil0/s,
    )
    expect(() => deleteLink('nil0', namespace)).not.toThrow()
  })

  it("tells what a TAP's queue had no room for, as iproute2 does", () => {
    const tap = openTap({ name: 'full0', namespace })
    // Nobody else is to send there while it is looked at.
    const settings = ['txqueuelen 10', 'address 02:00:00:00:00:01', 'addrgenmode none', 'up'].map(
      setting => `link set full0 ${setting}`,
    )
    const neighbour = 'neigh add 10.92.0.2 lladdr 02:00:00:00:00:02 dev full0'
    ipBatch([...settings, 'address add 10.92.0.1/24 dev full0', neighbour], namespace)
    const sent = 'for ((i = 0; i < 50; i++)); do echo > /dev/udp/10.92.0.2/9; done'
    inNamespace(namespace, () => execFileSync('bash', ['-c', sent]))
    const [{ stats64 }] = JSON.parse(ip(['-j', '-s', 'link', 'show', 'dev', 'full0'], namespace))
    expect(stats64.tx.dropped).toBeGreaterThanOrEqual(40)
    expect(queueDrops('full0', namespace)).toBe(stats64.tx.dropped)
    expect(queueDrops('full', namespace)).toBeUndefined()
    expect(queueDrops('full0', 'dtc-none')).toBeUndefined()
    // What is left of a namespace for a moment, or for ever, when it was unmounted.
    expect(queueDrops('full0', '/etc/hostname')).toBeUndefined()
    closeSync(tap.fd)
  })

  it('makes a TAP with every offload, as ethtool sees them, and fewer when asked', () => {
    const tap = openTap({ name: 'tap0', namespace })
    expect(tap).toMatchObject({ headerSize: 24, offloads: ALL_OFFLOADS })
    quietTap('tap0', namespace)
    const features = () => inNamespace(namespace, () => execFileSync('ethtool', ['-k', 'tap0'], { encoding: 'utf8' }))
    for (const name of [
      'tx-checksumming',
      'tx-tcp-segmentation',
      'tx-tcp6-segmentation',
      'tx-udp-segmentation',
      'tx-udp_tnl-segmentation',
    ])
      expect(features()).toMatch(new RegExp(`${name}: on`))
    expect(linkInfo('tap0', namespace)).toMatchObject({ type: 'ether', mtu: 65_521, addresses: [] })
    closeSync(tap.fd)

    const plain = openTap({ name: 'tap0', namespace, headerSize: 12, offloads: OFFLOADS.CHECKSUM | OFFLOADS.USO })
    expect(plain).toMatchObject({ headerSize: 12, offloads: OFFLOADS.CHECKSUM | OFFLOADS.USO })
    expect(features()).toMatch(/tx-tcp-segmentation: off/)
    expect(features()).toMatch(/tx-udp_tnl-segmentation: off/)
    expect(() => openTap({ name: 'tap0', namespace })).toThrow(/TUNSETIFF tap0: EBUSY/)
    closeSync(plain.fd)
    expect(() => openTap({ name: 'a-name-far-too-long' })).toThrow(/interface name 'a-name-far-too-long'/)
  })

  it('keeps a persistent TAP without its descriptor, and opens it again', () => {
    const name = 'tap1'
    closeSync(openTap({ name, namespace, persist: true }).fd)
    const { index } = linkInfo(name, namespace)
    closeSync(openTap({ name, namespace }).fd)
    expect(linkInfo(name, namespace).index).toBe(index)
    deleteLink(name, namespace)
    expect(() => linkInfo(name, namespace)).toThrow(/interface tap1 does not exist in namespace dtc-os/)
  })

  it('keeps entries in a hash map until it is full', () => {
    const fd = createHashMap('dtc_hash', 4, 1, 2)
    const value = new Uint8Array(1)
    const key = (i: number) => Uint8Array.of(i, 0, 0, 0)
    updateMap(fd, key(1), Uint8Array.of(9))
    expect([lookupMap(fd, key(1), value), value[0], lookupMap(fd, key(2), value)]).toEqual([true, 9, false])
    updateMap(fd, key(2), value)
    expect(() => updateMap(fd, key(3), value)).toThrow(/BPF_MAP_UPDATE_ELEM map \d+: E2BIG/)
    deleteFromMap(fd, key(1))
    deleteFromMap(fd, key(1))
    expect(lookupMap(fd, key(1), value)).toBe(false)
    closeSync(fd)
  })

  it('shows a heartbeat to the kernel, and the kernel finds it by its pin', () => {
    const directory = '/sys/fs/bpf/detour/dtc-os'
    const fd = createArrayMap('dtc_heartbeat', HEARTBEAT_SIZE, 1)
    makePinDirectory(directory)
    pin(fd, `${directory}/heartbeat`)
    const heartbeat = new Heartbeat(fd)
    heartbeat.enable('closed', 200)
    closeSync(fd)
    const found = getPinned(`${directory}/heartbeat`)
    const value = new DataView(new ArrayBuffer(HEARTBEAT_SIZE))
    const read = () => lookupMap(found, new Uint8Array(4), new Uint8Array(value.buffer))
    expect(read()).toBe(true)
    const now = Number(BigInt.asUintN(32, process.hrtime.bigint() >> 20n))
    expect(Math.abs(now - value.getUint32(40, true))).toBeLessThan(5000)
    expect([0, 4, 8].map(at => value.getUint32(at, true))).toEqual([msToUnits(200), 1, 1])
    heartbeat.disable()
    read()
    expect(value.getUint32(4, true)).toBe(0)
    expect(new Set(Object.values(heartbeat.read()))).toEqual(new Set([0]))
    heartbeat.close()
    closeSync(found)
    unpin(directory)
    expect(existsSync(directory)).toBe(false)
    expect(getPinned(`${directory}/heartbeat`)).toBe(-1)
  })

  it("passes on the verifier's words", () => {
    const bad = new Assembler().load(4, R0, R1, 4096).exit().assemble()
    expect(() => loadClassifier('dtc_bad', bad)).toThrow(
      /BPF_PROG_LOAD dtc_bad: .*the verifier said:.*invalid bpf_context access/s,
    )
  })

  it('assembles what bpftool disassembles', () => {
    const a = new Assembler().move(R6, R1).load(4, R2, R6, SKB.MARK).when32(R2, '!=', -2, 'on').set(R2, 7)
    a.store(4, R6, SKB.MARK, R2).label('on').storeImmediate(8, R10, -16, 3).load(1, R3, R10, -16).and(R3, 0xff)
    a.load(2, R4, R10, -14).whenRegister(R3, '<=', R4, 'end').when(R3, '>', 5, 'end').add(R3, -1)
    a.call(HELPER.KTIME_GET_NS).shiftRight(R0, 20).set(R1, 1).subtract32(R0, R1).add32(R0, 8)
    a.atomicAdd(R10, -16, R1).label('end').exit(-1)
    const fd = loadClassifier('dtc_listing', a.assemble())
    const directory = '/sys/fs/bpf/detour/dtc-os'
    makePinDirectory(directory)
    pin(fd, `${directory}/program`)
    closeSync(fd)
    const listing = execFileSync('bpftool', ['prog', 'dump', 'xlated', 'pinned', `${directory}/program`], {
      encoding: 'utf8',
    })
    unpin(directory)
    const lines = listing
      .trim()
      .split('\n')
      .map(line => line.replace(/^\s*\d+: \(\w+\) /, '').replace(/#\d+$/, ''))
    expect(lines.slice(2)).toEqual([
      'if w2 != 0xfffffffe goto pc+2',
      'r2 = 7',
      expect.stringMatching(/^\*\(u32 \*\)\(r6 \+\d+\) = r2$/), // the verifier turns the context into a sk_buff
      '*(u64 *)(r10 -16) = 3',
      'r3 = *(u8 *)(r10 -16)',
      'r3 &= 255',
      'r4 = *(u16 *)(r10 -14)',
      'if r3 <= r4 goto pc+8',
      'if r3 > 0x5 goto pc+7',
      'r3 += -1',
      'call bpf_ktime_get_ns',
      'r0 >>= 20',
      'r1 = 1',
      'w0 -= w1',
      'w0 += 8',
      'lock *(u64 *)(r10 -16) += r1',
      'r0 = -1',
      'exit',
    ])
  })
})
