// The laboratory's namespaces and traffic against the kernel: links, addresses, clean-up, and real programs in them.

import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../../src/control/package.ts'
import { startNode } from '../../src/lab/faces.ts'
import { attachmentId, buildTopology, cleanUp, leftOver, type Topology, whyNoLab } from '../../src/lab/topology.ts'
import { bulkTransfer, httpGet, probeLoss, startHttpServer, startProbe } from '../../src/lab/traffic.ts'
import { inNamespace } from '../../src/os/netns.ts'

const reason = whyNoLab()
const NODE = new URL('dist/src/lab/programs/node.js', packageRoot)
const RUN = `t${process.pid}`
const LIMIT_MS = 20_000

describe.skipIf(reason !== null)(`lab topology${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  let topology: Topology
  beforeAll(() => {
    topology = buildTopology({ run: RUN })
  })
  afterAll(() => topology.close())

  it('gives every place its interface, addresses and MTU, ready at once', () => {
    for (const place of Object.values(topology.places)) {
      const [link] = JSON.parse(
        execFileSync('ip', ['-n', place.namespace, '-j', 'addr', 'show', place.interface], { encoding: 'utf8' }),
      )
      const addresses = link.addr_info.map((info: { local: string }) => info.local)
      expect(addresses).toEqual(expect.arrayContaining([place.ipv4, place.ipv6]))
      expect(link.addr_info.some((info: { tentative?: boolean }) => info.tentative)).toBe(false)
      expect(link.mtu).toBe(place.role === 'node' || place.role === 'gateway' ? 1600 : 1500)
      expect(link.address).toBe(place.mac)
    }
  })

  it('does not let the node route between pods and underlay', () => {
    const { node } = topology.places
    const value = execFileSync('nsenter', [`--net=${node.path}`, 'cat', '/proc/sys/net/ipv4/ip_forward'], {
      encoding: 'utf8',
    })
    expect(value.trim()).toBe('0')
  })

  it.each(['ipv4', 'ipv6'] as const)(
    'answers HTTP over %s, and tells a page from a missing one and a dead port',
    async family => {
      const { client, server } = topology.places
      const http = await startHttpServer(server, server[family], 8080)
      try {
        const allowed = await httpGet(client, server[family], 8080, '/allowed', LIMIT_MS)
        expect(allowed).toMatchObject({ status: 200, error: null })
        expect(allowed.bytes).toBeGreaterThan(1000)
        expect(await httpGet(client, server[family], 8080, '/nothing', LIMIT_MS)).toMatchObject({ status: 404 })
        expect(await httpGet(client, server[family], 8081, '/', LIMIT_MS)).toMatchObject({
          status: null,
          error: 'ECONNREFUSED',
        })
      } finally {
        await http.stop('SIGKILL')
      }
    },
  )

  const tools = (['iperf3', 'node'] as const).filter(
    tool => tool === 'node' || spawnSync('iperf3', ['-v']).error === undefined,
  )
  it.each(tools)('measures a bulk transfer with %s', async tool => {
    const { client, server } = topology.places
    const bulk = await bulkTransfer({ from: client, to: server, address: server.ipv4, port: 5301, seconds: 2, tool })
    expect(bulk.tool).toBe(tool)
    expect(bulk.gbps).toBeGreaterThan(0.01)
    expect(bulk.series.length).toBeGreaterThanOrEqual(3)
  })

  it('counts probes that are lost while a link is down', async () => {
    const { client, server, node } = topology.places
    const probe = await startProbe(client, server, server.ipv4, 7007)
    const link = (state: string) => execFileSync('ip', ['-n', node.namespace, 'link', 'set', 'veth-server', state])
    try {
      expect(await probe.answered(10, 0, LIMIT_MS)).toBe(true)
      link('down')
      // NB: looked at when it is down, not before; another process's clock may differ by some ms.
      const down = Date.now() + 20
      expect(await probe.answered(1, down, 300)).toBe(false)
      // On a loaded machine, few may have been sent by now.
      const sent = () => probe.records.filter(({ sentMs }) => sentMs >= down).length
      await expect.poll(sent, { timeout: LIMIT_MS }).toBeGreaterThan(5)
      const up = Date.now()
      link('up')
      expect(await probe.answered(10, up, LIMIT_MS)).toBe(true)
      const loss = probeLoss(probe.records, down, up)
      expect(loss.sent).toBeGreaterThan(5)
      expect(loss.lost).toBeGreaterThan(0)
      expect(loss.answered + loss.lost).toBe(loss.sent)
    } finally {
      await probe.stop()
    }
  })

  it('refuses a second laboratory of the same name while the first is alive', () => {
    expect(() => buildTopology({ run: RUN })).toThrow(/belongs to process \d+/)
  })

  it('refuses a name that could leave its prefix', () => {
    expect(() => buildTopology({ run: '../x' })).toThrow(/run name '\.\.\/x'/)
  })
})

describe.skipIf(reason !== null)(`lab clean-up${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  it('kills what runs inside and leaves no namespace or state file', async () => {
    const run = `c${process.pid}`
    const topology = buildTopology({ run })
    // In the namespace from its first moment on.
    const sleeper = inNamespace(topology.places.server.path, () => spawn('sleep', ['600'], { stdio: 'ignore' }))
    const ended = new Promise(resolve => sleeper.once('close', (_, signal) => resolve(signal)))
    topology.close()
    expect(await ended).toBe('SIGKILL')
    expect(leftOver(run)).toEqual([])
    expect(existsSync(`/run/detour/lab-${run}.json`)).toBe(false)
    topology.close()
  })

  it('remembers a run that it could not remove, and removes it later', () => {
    const run = `e${process.pid}`
    const topology = buildTopology({ run })
    const { namespace, path } = topology.places.gateway
    execFileSync('ip', ['netns', 'del', namespace])
    // What stands in the namespace's place cannot be removed as one.
    mkdirSync(path)
    try {
      expect(() => topology.close()).toThrow(/ip netns del .*gateway/)
      expect(leftOver(run)).toEqual([namespace])
      expect(existsSync(`/run/detour/lab-${run}.json`)).toBe(true)
    } finally {
      rmdirSync(path)
    }
    topology.close()
    expect(existsSync(`/run/detour/lab-${run}.json`)).toBe(false)
  })

  it.skipIf(!existsSync(NODE))('takes off the BPF programs of a node that was killed (needs dist/)', async () => {
    const run = `b${process.pid % 10_000}`
    const topology = buildTopology({ run })
    const folder = mkdtempSync(join(tmpdir(), 'detour-lab-'))
    try {
      const rungs = { attach: 'auto', offload: 'auto', express: 'auto' } as const
      const options = {
        topology,
        profile: 'geneve',
        family: 'ipv4',
        failMode: 'closed',
        rungs,
        workers: 1,
        folder,
      } as const
      const node = await startNode(options)
      await node.stop('SIGKILL')
      expect(leftOver(run)).toContain(attachmentId(run, 'client'))
    } finally {
      topology.close()
      rmSync(folder, { recursive: true })
    }
    expect(leftOver(run)).toEqual([])
  })

  it('removes what a dead laboratory left, and nothing that it did not make', () => {
    const run = `d${process.pid}`
    const stranger = `other-${process.pid}`
    execFileSync('ip', ['netns', 'add', stranger])
    try {
      buildTopology({ run })
      // As if its owner had died: this process id, but of an earlier process.
      writeFileSync(
        `/run/detour/lab-${run}.json`,
        JSON.stringify({ run, pid: process.pid, startTime: '1', keep: false }),
      )
      expect(cleanUp()).toContain(run)
      expect(leftOver(run)).toEqual([])
      expect(readdirSync('/run/netns')).toContain(stranger)
    } finally {
      execFileSync('ip', ['netns', 'del', stranger])
    }
  })
})
