// Steering on one node and across two: each packet is inspected exactly once, both directions of a flow by one gateway. What
// the gateways are sent is read by tcpdump and tshark, not by Detour.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { parseRules } from '../../src/gateway/rules.ts'
import type { RunningNode } from '../../src/node/node.ts'
import { inNamespace } from '../../src/os/netns.ts'
import { buildCluster, type Cluster, until } from './cluster.ts'
import { missing, runIn, title } from './support.ts'

const needs = missing !== '' ? missing : tools()

function tools(): string {
  try {
    execFileSync('which', ['tshark', 'tcpdump'])
    return ''
  } catch {
    return 'needs tshark and tcpdump'
  }
}

/** Answers each datagram by what it says and `-back`. */
const ECHO = `
  const s = require('dgram').createSocket('udp4')
  s.on('message', (m, from) => s.send(m + '-back', from.port, from.address))
  s.bind(7000, process.argv[1], () => console.log('ready'))`

/** Sends so many datagrams, each of a flow of its own and none twice, and waits for the answer to each. */
const ASK = `
  const [tag, far, count] = process.argv.slice(1)
  const ask = i => new Promise((resolve, reject) => {
    const s = require('dgram').createSocket('udp4')
    const timer = setTimeout(() => reject(new Error('no answer to ' + tag + '-' + i)), 30000)
    s.on('message', m => { clearTimeout(timer); s.close(); String(m) === tag + '-' + i + '-back' ? resolve() : reject(new Error(String(m))) })
    s.send(tag + '-' + i, 7000, far)
  })
  ;(async () => { for (let i = 0; i < count; i++) await ask(i); console.log('all') })()`

/** A page for whoever asks; one connection each. */
const SERVE = `require('http').createServer((q, r) => { r.setHeader('connection', 'close'); r.end('page ' + q.url) })
  .listen(80, process.argv[1], () => console.log('ready'))`

/** Asks for one page after the other: in one process, as a gateway forgets a connection 10 s after its end. */
const GET = `
  const get = url => new Promise(resolve => require('http').get(url, { agent: false }, r => {
    let got = ''
    r.on('data', d => (got += d))
    r.on('end', () => resolve(got))
  }).on('error', error => resolve(error.code)))
  ;(async () => { for (const url of process.argv.slice(1)) console.log(await get(url)) })()`

const POLICY = parseRules(
  "{ rules: [{ name: no-secrets, protocol: tcp, ports: [80], signature: { text: 'GET /secret' }, action: reset }] }",
  'rules.yaml',
)

const FLOWS = 24

/** One packet as a gateway saw it. */
interface Seen {
  gateway: number
  /** Of the outer header. */
  to: string
  payload: string
}

describe.skipIf(needs !== '')(needs === '' ? 'two nodes' : title(`two nodes (skipped: ${needs})`), () => {
  let cluster: Cluster
  const nodes: RunningNode[] = []
  const gateways: RunningGateway[] = []
  const children: ChildProcess[] = []
  const captures: ChildProcess[] = []
  const folder = mkdtempSync(join(tmpdir(), 'detour-two-nodes-'))

  const child = async (namespace: string, ready: RegExp, command: string, ...args: string[]) => {
    const made = inNamespace(namespace, () => spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] }))
    children.push(made)
    await new Promise<void>((resolve, reject) => {
      let out = ''
      const hear = (data: Buffer) => {
        out += data
        if (ready.test(out)) resolve()
      }
      made.stdout.on('data', hear)
      made.stderr.on('data', hear)
      made.once('close', () => reject(new Error(`${command}: ${out}`)))
    })
    return made
  }

  beforeAll(async () => {
    cluster = buildCluster('dth-two', 2, 2, 2)
    for (const { namespace, address } of cluster.gateways)
      gateways.push(await startGateway({ profile: 'geneve', address, namespace, interface: 'eth0', policy: POLICY }))
    const endpoints = cluster.gateways.map(({ address }) => ({ address }))
    for (const [n, node] of cluster.nodes.entries()) {
      const tunnel = { vni: 77, local: node.address }
      const elsewhere = { protectedCidrs: [`10.244.${1 - n}.0/24`] }
      // Each datagram is sent once: none may fall to a worker that waits for a processor.
      const once = { failMode: 'closed', heartbeatLimitMs: 20_000 }
      nodes.push(await node.start({ tunnel, endpoints, ...once, bypass: [], pods: elsewhere }))
    }
    const servers = [
      ...cluster.nodes.flatMap(node => node.pods.map(pod => [pod.namespace, pod.four])),
      [cluster.outside.namespace, cluster.outside.address],
    ]
    for (const [namespace, address] of servers) {
      await child(namespace, /ready/, process.execPath, '-e', ECHO, address)
      await child(namespace, /ready/, process.execPath, '-e', SERVE, address)
    }
  })
  afterAll(async () => {
    for (const made of [...children, ...captures]) made.kill('SIGKILL')
    for (const running of [...nodes, ...gateways]) await running.stop()
    cluster?.remove()
    rmSync(folder, { recursive: true, force: true })
  })

  const fileOf = (gateway: number) => join(folder, `gateway${gateway}.pcap`)

  beforeEach(async () => {
    for (const made of captures.splice(0)) {
      const gone = new Promise(resolve => made.once('close', resolve))
      made.kill('SIGINT')
      await gone
    }
    for (const [gateway, { namespace }] of cluster.gateways.entries())
      captures.push(
        await child(
          namespace,
          /listening on/,
          'tcpdump',
          '-U',
          '--immediate-mode',
          // NB: in this mode there is room for eight packets otherwise.
          '-B',
          '65536',
          '-i',
          'eth0',
          '-w',
          fileOf(gateway),
          'udp',
          'port',
          '6081',
        ),
      )
  })

  /** What the gateways have seen of this test's datagrams. */
  async function seen(tag: string): Promise<Seen[]> {
    const found: Seen[] = []
    for (const gateway of cluster.gateways.keys()) {
      const out = await runIn(
        '',
        'tshark',
        '-r',
        fileOf(gateway),
        '-Y',
        'data',
        '-T',
        'fields',
        '-e',
        'ip.dst',
        '-e',
        'data.data',
        // The last packet may be on its way to the file yet.
      ).catch(() => '')
      for (const line of out.split('\n')) {
        const [addresses, data] = line.split('\t')
        const payload = data === undefined ? '' : Buffer.from(data.replaceAll(':', ''), 'hex').toString()
        if (payload.startsWith(`${tag}-`)) found.push({ gateway, to: addresses.split(',')[0], payload })
      }
    }
    return found
  }

  const node = (n: number) => cluster.nodes[n]
  const pod = (n: number, i: number) => node(n).pods[i]
  const [A, B] = [0, 1]

  /** Client, server, and the nodes that steer what each of them sends. */
  const ways: [string, () => { from: string; to: string; asks: string; answers: string }][] = [
    [
      'from pod to pod of one node',
      () => ({ ...between(pod(0, 0), pod(0, 1)), asks: node(A).address, answers: node(A).address }),
    ],
    [
      'from a pod to one of another node',
      () => ({ ...between(pod(0, 0), pod(1, 0)), asks: node(A).address, answers: node(B).address }),
    ],
    [
      'and the other way round',
      () => ({ ...between(pod(1, 1), pod(0, 0)), asks: node(B).address, answers: node(A).address }),
    ],
    [
      'from a pod to outside',
      () => ({ ...between(pod(0, 1), outside()), asks: node(A).address, answers: node(A).address }),
    ],
    [
      'from outside to a pod',
      () => ({ ...between(outside(), pod(1, 0)), asks: node(B).address, answers: node(B).address }),
    ],
  ]
  const outside = () => ({ namespace: cluster.outside.namespace, four: cluster.outside.address })
  const between = (from: { namespace: string }, to: { four: string }) => ({ from: from.namespace, to: to.four })

  for (const [name, way] of ways) {
    it(`each packet is inspected once, both directions of a flow by one gateway: ${name}`, async () => {
      const { from, to, asks, answers } = way()
      const tag = name.replaceAll(' ', '')
      expect(await runIn(from, process.execPath, '-e', ASK, tag, to, `${FLOWS}`)).toBe('all\n')
      let all: Seen[] = []
      await until(async () => (all = await seen(tag)).length >= 4 * FLOWS, 'all packets')
      const used = new Set<number>()
      for (let i = 0; i < FLOWS; i++) {
        const of = (payload: string) => all.filter(packet => packet.payload === payload)
        const [asked, answered] = [of(`${tag}-${i}`), of(`${tag}-${i}-back`)]
        const { gateway } = asked[0]
        const { address } = cluster.gateways[gateway]
        used.add(gateway)
        expect(asked.map(packet => packet.to)).toEqual([address, asks])
        expect(answered.map(packet => packet.to)).toEqual([address, answers])
        expect(new Set([...asked, ...answered].map(packet => packet.gateway)).size).toBe(1)
      }
      expect(used.size).toBe(2)
      expect(all).toHaveLength(4 * FLOWS)
    })
  }

  it('a gateway sees both directions of a connection between nodes as one flow, and what its policy stops, it stops', async () => {
    const { namespace } = pod(0, 1)
    const url = `http://${pod(1, 1).four}`
    const urls = Array.from({ length: 8 }, () => [`${url}/allowed`, `${url}/secret`]).flat()
    const answers = (await runIn(namespace, process.execPath, '-e', GET, ...urls)).trim().split('\n')
    expect(answers).toEqual(urls.map(one => (one.endsWith('allowed') ? 'page /allowed' : 'ECONNRESET')))
    const found = await Promise.all(
      gateways.map(async ({ source }) => {
        const { rows } = await source.flows({ limit: 5000, order: 'bytes', port: 80 })
        return rows.filter(row => row.source === pod(0, 1).four && row.destination === pod(1, 1).four)
      }),
    )
    expect(found.flat()).toHaveLength(16)
    for (const rows of found) {
      expect(rows.length).toBeGreaterThan(0)
      for (const row of rows) {
        expect(row.sentPackets).toBeGreaterThan(2)
        expect(row.receivedPackets).toBeGreaterThan(0)
      }
    }
    expect(found.flat().filter(row => row.verdict === 'reset')).toHaveLength(8)
  })
})
