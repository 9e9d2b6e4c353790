// Interception of a pod interface, on real interfaces with real traffic.

import { spawn } from 'node:child_process'
import { closeSync, existsSync, writeFileSync } from 'node:fs'
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest'
import {
  type Attachment,
  type AttachOptions,
  attach,
  cleanup,
  createProtectedMap,
  PIN_DIRECTORY,
} from '../../src/node/attachment.ts'
import { protect, unprotect } from '../../src/node/prefixes.ts'
import type { FailCounters, FailMode } from '../../src/os/heartbeat.ts'
import { linkInfo } from '../../src/os/link.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch, tc } from '../../src/os/netns.ts'
import { said } from '../processes.ts'
import {
  type Child,
  HOST4,
  HOST6,
  listing,
  missing,
  POD4,
  Probe,
  runIn,
  start,
  title,
  transfer,
  wire,
} from './support.ts'

interface Report {
  received: number
  sent: number
  bytes: number
  drops: number
  calls: number
  superPackets: number
  free: number
}

describe.skipIf(missing !== '')(title('attachment'), () => {
  const id = 'dtc-attachment'
  let wired: ReturnType<typeof wire>
  let protectedMap: number
  let attachment: Attachment | undefined
  let forwarder: Child<Report> | undefined
  let atStart: FailCounters
  const probes: Probe[] = []

  const probe = (...args: ConstructorParameters<typeof Probe>) => {
    const made = new Probe(...args)
    probes.push(made)
    return made
  }
  const outward = (mark = 0) => probe(wired.pod, wired.host, HOST4, 9000, { mark })
  const inward = () => probe(wired.host, wired.pod, POD4, 9001)

  const take = (options: Partial<AttachOptions> = {}) => {
    attachment = attach({
      namespace: wired.pod,
      id,
      failMode: 'open',
      heartbeatLimitMs: 10_000,
      protectedMap,
      ...options,
    })
    return attachment
  }
  // The forwarder has the TAP for itself, so that its death is the death of everything. NB: on a busy machine it is silent for long, too.
  const forward = async (from: Attachment) => {
    forwarder = await start<Report>('forwarder', [from.headerSize, from.capabilities], [from.tapFds[0], from.mapFd])
    closeSync(from.tapFds[0])
    atStart = from.failCounters()
    return forwarder
  }
  /** Has it counted as dead, once it is, sooner than one that is only slow. */
  const kill = async (failMode: FailMode) => {
    await forwarder?.kill()
    attachment!.govern(failMode, 500)
  }
  // What the gates counted since the forwarder was ready; the kernel's own chatter may have come before.
  const counted = () => {
    const { redirected, passed, dropped } = attachment!.failCounters()
    return {
      redirected: redirected - atStart.redirected,
      passed: passed - atStart.passed,
      dropped: dropped - atStart.dropped,
    }
  }
  const until = (condition: () => boolean) => {
    const end = Date.now() + 10_000
    while (!condition()) if (Date.now() > end) throw new Error('it never came to pass')
  }

  // NB: the kernel lets go of a link that is pinned no more in a while of its own (bpf_link_put in kernel/bpf/syscall.c).
  const expectFound = (found: string) => expect.poll(() => listing(wired.pod, 'eth0')).toBe(found)

  beforeAll(() => {
    wired = wire('dtc-att')
    protectedMap = createProtectedMap(16)
  })
  afterEach(async () => {
    await forwarder?.kill()
    attachment?.detach()
    forwarder = attachment = undefined
    for (const made of probes.splice(0)) made.close()
  })
  afterAll(() => {
    closeSync(protectedMap)
    wired.remove()
  })

  it('tells what it attached to', () => {
    const link = linkInfo('eth0', wired.pod)
    const it = take()
    expect(it).toMatchObject({ interface: 'eth0', mac: link.mac, mtu: 1500, addresses: link.addresses, rung: 'tcx' })
    expect(it.addresses).toContain(POD4)
    closeSync(it.tapFds[0])
  })

  for (const rung of ['tcx', 'clsact'] as const) {
    it(`carries TCP both ways as super-packets, every frame counted (${rung})`, async () => {
      const { stop } = await forward(take({ rung }))
      expect(attachment?.rung).toBe(rung)
      expect(await transfer(wired.pod, wired.host, HOST4)).toBeGreaterThan(0)
      expect(await transfer(wired.pod, wired.host, HOST6, '-R')).toBeGreaterThan(0)
      const report = await stop()
      expect(report.drops).toBe(0)
      expect(report.sent).toBe(report.received)
      expect(report.free).toBe(512)
      // 600 MB in packets of 1500 bytes would be 400,000.
      expect(report.received).toBeLessThan(200_000)
      expect(report.superPackets).toBeGreaterThan(5_000)
      expect(counted()).toMatchObject({ passed: 0, dropped: 0 })
      expect(counted().redirected).toBeGreaterThan(5_000)
    })

    for (const before of ['nothing', 'a clsact qdisc of somebody else']) {
      it(`leaves the pod as it was found: ${before} (${rung})`, async () => {
        if (before !== 'nothing') tc(['qdisc', 'add', 'dev', 'eth0', 'clsact'], wired.pod)
        const found = listing(wired.pod, 'eth0')
        const { stop } = await forward(take({ rung }))
        expect(listing(wired.pod, 'eth0')).not.toBe(found)
        expect(existsSync(`${PIN_DIRECTORY}/${id}`)).toBe(true)
        await stop()
        attachment?.detach()
        await expectFound(found)
        expect(existsSync(`${PIN_DIRECTORY}/${id}`)).toBe(false)
        if (before !== 'nothing') tc(['qdisc', 'del', 'dev', 'eth0', 'clsact'], wired.pod)
      })
    }
  }

  it('moves every byte unchanged', async () => {
    await forward(take())
    const server = `const { createHash } = require('crypto'); require('net').createServer({ allowHalfOpen: true }, s => {
      const h = createHash('sha256'); s.on('data', d => h.update(d)); s.on('end', () => s.end(h.digest('hex')))
    }).listen(9100, '${HOST4}', () => console.log('listening'))`
    const client = `const { createCipheriv, createHash } = require('crypto'); const h = createHash('sha256')
      const c = createCipheriv('aes-128-ctr', Buffer.alloc(16), Buffer.alloc(16)); let n = 0, got = ''
      const s = require('net').connect(9100, '${HOST4}')
      const more = () => { while (n++ < 400) { const b = c.update(Buffer.alloc(65536 + n)); h.update(b); if (!s.write(b)) return } s.end() }
      s.on('drain', more); s.on('connect', more); s.on('data', d => (got += d)); s.on('end', () => console.log(got, h.digest('hex')))`
    const listening = inNamespace(wired.host, () =>
      spawn(process.execPath, ['-e', server], { stdio: ['ignore', 'pipe', 'inherit'] }),
    )
    await said(listening.stdout, 'listening')
    const [theirs, ours] = (await runIn(wired.pod, process.execPath, '-e', client)).trim().split(' ')
    listening.kill()
    expect(theirs).toMatch(/^[0-9a-f]{64}$/)
    expect(theirs).toBe(ours)
  })

  it('fails open when the worker is killed: packets pass, and are counted', async () => {
    await forward(take({ failMode: 'open' }))
    const out = outward()
    expect(out.send(5000)).toBe(true)
    const before = counted()
    expect(before).toMatchObject({ passed: 0, dropped: 0 })
    expect(before.redirected).toBeGreaterThan(0)
    await kill('open')
    until(() => out.send(5))
    const dead = counted()
    expect(dead.passed).toBeGreaterThan(0)
    for (let i = 0; i < 10; i++) expect(out.send(5000)).toBe(true)
    expect(inward().send(5000)).toBe(true)
    const after = counted()
    expect(after.passed).toBeGreaterThanOrEqual(dead.passed + 11)
    expect(after.redirected).toBe(dead.redirected)
    expect(after.dropped).toBe(0)
  })

  it('fails closed when the worker is killed: packets stop, and are counted, but neighbours are still found', async () => {
    await forward(take({ failMode: 'closed' }))
    const out = outward()
    expect(out.send(5000)).toBe(true)
    await kill('closed')
    until(() => !out.send(5) && counted().dropped > 0)
    const dead = counted()
    for (let i = 0; i < 10; i++) expect(out.send(5)).toBe(false)
    expect(inward().send(5)).toBe(false)
    const after = counted()
    expect(after.dropped).toBeGreaterThanOrEqual(dead.dropped + 11)
    expect(after).toMatchObject({ passed: 0, redirected: dead.redirected })

    await runIn(wired.pod, 'ip', 'neigh', 'flush', 'all')
    const mac = linkInfo('veth0', wired.host).mac
    const six = probe(wired.pod, wired.host, HOST6, 9002)
    const neighbours: string[] = []
    for (let tries = 0; tries < 200 && !neighbours.some(line => line.includes(mac)); tries++) {
      expect(six.send(20)).toBe(false)
      neighbours.push(await runIn(wired.pod, 'ip', '-6', 'neigh', 'show', HOST6))
    }
    expect(neighbours.at(-1)).toContain(mac)

    attachment!.detach()
    expect(out.send(5000)).toBe(true)
  })

  it('a later process takes away what a killed one left', async () => {
    const found = listing(wired.pod, 'eth0')
    await forward(take({ failMode: 'closed', rung: 'clsact' }))
    await kill('closed')
    cleanup({ namespace: wired.pod, id })
    await expectFound(found)
    cleanup({ namespace: wired.pod, id })
    cleanup({ namespace: 'dtc-not-there', id })
    attachment = undefined
    expect(outward().send(5000)).toBe(true)
  })

  it('attaching again under the same id replaces the first', async () => {
    const first = take()
    closeSync(first.tapFds[0])
    await forward(take())
    const out = outward()
    expect(out.send(5000)).toBe(true)
    expect(counted().redirected).toBeGreaterThan(0)
  })

  it('does not steer what arrives from a protected pod, and does what arrives from others', async () => {
    await forward(take())
    const arriving = inward()
    const redirected = () => counted().redirected
    const start = redirected()
    expect(arriving.send(5000)).toBe(true)
    expect(redirected()).toBe(start + 1)
    for (const [i, prefix] of [HOST4, HOST4.replace(/\d+$/, '0/24')].entries()) {
      protect(protectedMap, [prefix])
      expect(arriving.send(5000)).toBe(true)
      expect(redirected()).toBe(start + 1 + i)
      unprotect(protectedMap, [prefix])
      expect(arriving.send(5000)).toBe(true)
      expect(redirected()).toBe(start + 2 + i)
    }
  })

  it('a mark set by the pod does not get a packet past the gate', async () => {
    const { stop } = await forward(take())
    const marked = outward(0x0de70000)
    const before = counted().redirected
    for (let i = 0; i < 5; i++) expect(marked.send(5000)).toBe(true)
    expect(counted().redirected).toBe(before + 5)
    expect((await stop()).received).toBeGreaterThanOrEqual(5)
  })

  it('an interface that the pod puts in place of the TAP, under its number, gets no packet past the gate', () => {
    const { tapName, tapIndex, tapFds } = take({ failMode: 'closed' })
    for (const fd of tapFds) closeSync(fd)
    const inner = 'dtc-att-inner'
    createNamespace(inner)
    try {
      const feigned = `link add ${tapName} index ${tapIndex} type veth peer name far netns ${inner}`
      ipBatch(
        [`link del ${tapName}`, feigned, `address add 10.91.7.1/24 dev ${tapName}`, `link set ${tapName} up`],
        wired.pod,
      )
      const way = `route add default via 10.91.7.1 src ${POD4}`
      ipBatch([`address add ${POD4}/32 dev far`, 'link set far up', 'route add 10.91.7.1 dev far', way], inner)
      const set = (name: string, value: string) => writeFileSync(`/proc/sys/net/ipv4/${name}`, value)
      inNamespace(wired.pod, () => {
        set('ip_forward', '1')
        // Its packets are the pod's own that come from another side.
        for (const each of ['all', tapName]) set(`conf/${each}/rp_filter`, '0')
        set(`conf/${tapName}/accept_local`, '1')
      })
      const forwarded = new Probe(inner, wired.host, HOST4, 9000)
      probes.push(forwarded)
      // The gate gets it, and has no TAP to give it to.
      until(
        () => !forwarded.send(100) && attachment!.failCounters().redirected + attachment!.failCounters().dropped > 0,
      )
      for (let i = 0; i < 5; i++) expect(forwarded.send(100)).toBe(false)
    } finally {
      inNamespace(wired.pod, () => writeFileSync('/proc/sys/net/ipv4/ip_forward', '0'))
      deleteNamespace(inner)
    }
  })

  describe('a pod that sends from addresses that are not its own', () => {
    const STRANGER = '10.91.0.77'
    const SEND = `import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
try: s.sendto(b'x', (sys.argv[2], 9000))
except OSError: pass`
    /** What the gate does with a datagram from an address, the worker being dead and the mode open. */
    const fateOf = async (address: string) => {
      const before = attachment!.failCounters()
      await runIn(wired.pod, '/usr/bin/python3', '-c', SEND, address, HOST4)
      const { passed, spoofedAddress } = attachment!.failCounters()
      // The kernel's own chatter may pass meanwhile.
      return spoofedAddress > before.spoofedAddress ? 'spoofed' : passed > before.passed ? 'passed' : 'lost'
    }
    const dead = async (options: Partial<AttachOptions>) => {
      await forward(take({ failMode: 'open', ...options }))
      const out = outward()
      expect(out.send(5000)).toBe(true)
      await kill('open')
      until(() => out.send(5))
    }
    const onEth0 = (verb: string) => runIn(wired.pod, 'ip', 'address', verb, `${STRANGER}/32`, 'dev', 'eth0')

    it('is stopped by the gate, also while it fails open; an address of the interface becomes its own', async () => {
      await dead({})
      expect(await fateOf(POD4)).toBe('passed')
      await onEth0('add')
      try {
        expect(await fateOf(STRANGER)).toBe('spoofed')
        attachment!.update([...attachment!.addresses, STRANGER], 1500)
        expect(await fateOf(STRANGER)).toBe('passed')
      } finally {
        await onEth0('del')
      }
    })

    it('gains nothing by giving itself one where a CNI result says what is its own', async () => {
      await onEth0('add')
      try {
        await dead({ networks: [`${POD4}/24`] })
        attachment!.update([...attachment!.addresses], 1500)
        expect(await fateOf(STRANGER)).toBe('spoofed')
        expect(await fateOf(POD4)).toBe('passed')
      } finally {
        await onEth0('del')
      }
    })

    for (const [how, options] of [
      ['by prefix', { alsoFrom: ['10.91.0.64/26'] }],
      ['altogether', { antiSpoofing: false }],
    ] as const) {
      it(`may where it is told so, ${how}`, async () => {
        await onEth0('add')
        try {
          await dead({ networks: [`${POD4}/24`], ...options })
          expect(await fateOf(STRANGER)).toBe('passed')
        } finally {
          await onEth0('del')
        }
      })
    }
  })

  it('refuses what it cannot do in words that help', () => {
    const attempt = (options: Partial<AttachOptions>) => () => take(options)
    expect(attempt({ namespace: 'dtc-not-there' })).toThrow(/\/run\/netns\/dtc-not-there does not exist/)
    expect(attempt({ interface: 'eth7' })).toThrow(/interface eth7 does not exist in namespace dtc-att-pod/)
    expect(attempt({ interface: 'lo' })).toThrow(/type loopback: not Ethernet/)
    expect(attempt({ id: '../x' })).toThrow(/pin directory/)
  })
})
