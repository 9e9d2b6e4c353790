// Requests through a gateway that policies limit: scapy writes the connections, tshark reads what came back.

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { tunnelOf } from '../../../src/cli/options.ts'
import { asData } from '../../../src/cli/replay.ts'
import type { Denial } from '../../../src/gateway/judge.ts'
import { runReplay } from '../../../src/lab/replay.ts'
import { dropsOf, type ReportData } from '../../lab/accounts.ts'

const PYTHON = '/usr/bin/python3'
const missing = spawnSync(PYTHON, ['-c', 'import scapy']).status !== 0 || spawnSync('tshark', ['-v']).status !== 0
const reason = missing ? ' (skipped: needs python3-scapy and tshark)' : ''

const pod = (name: string, address: string) => ({
  kind: 'Pod',
  metadata: { name, namespace: 'shop', labels: { app: name } },
  status: { phase: 'Running', podIPs: [{ ip: `10.0.0.${address}` }, { ip: `fd00::${address}` }] },
})
const INVENTORY = [{ value: { kind: 'List', items: [pod('client', '1'), pod('server', '2')] }, where: 'inventory' }]

const ONLY_PUBLIC = {
  apiVersion: 'cilium.io/v2',
  kind: 'CiliumNetworkPolicy',
  metadata: { name: 'public', namespace: 'shop' },
  spec: {
    endpointSelector: { matchLabels: { app: 'server' } },
    ingress: [{ toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ method: 'GET', path: '/public.*' }] } }] }],
  },
}

interface Connection {
  name: string
  segments: [offset: number, text: string][]
  isn?: number
  six?: boolean
}

const get = (path: string, more = '') => `GET ${path} HTTP/1.1\r\nHost: server\r\n${more}\r\n`
/** A text cut into parts of so many bytes. */
const cut = (text: string, size: number): [number, string][] =>
  Array.from({ length: Math.ceil(text.length / size) }, (_, i) => [i * size, text.slice(i * size, (i + 1) * size)])

const SECRET = get('/secret', `X-Long: ${'x'.repeat(3000)}\r\n`)
const PUBLIC = get('/public/page', `X-Long: ${'x'.repeat(3000)}\r\n`)

const DENIED: Connection[] = [
  { name: 'whole', segments: [[0, get('/secret')]] },
  { name: 'whole, over IPv6', segments: [[0, get('/secret')]], six: true },
  { name: 'a byte a segment', segments: cut(get('/secret'), 1) },
  { name: 'larger than the MTU', segments: cut(SECRET, 1400) },
  { name: 'backwards', segments: cut(SECRET, 500).reverse() },
  { name: 'across the wrap of sequence numbers', segments: cut(SECRET, 700), isn: 0xffff_ff00 },
  { name: 'behind an allowed one, in one segment', segments: [[0, get('/public') + get('/secret')]] },
  {
    name: 'behind an allowed one with a body that looks like one',
    segments: cut(`GET /public HTTP/1.1\r\nHost: s\r\nContent-Length: 4\r\n\r\nGET ${get('/secret')}`, 9),
  },
  { name: 'in an encoded path', segments: [[0, get('/%73ecret')]] },
  { name: 'by dot segments', segments: [[0, get('/public/../secret')]] },
  { name: 'by another method', segments: [[0, get('/public').replace('GET', 'POST')]] },
  { name: 'no HTTP at all', segments: [[0, 'SSH-2.0-OpenSSH\r\n']] },
  { name: 'HTTP/2 by prior knowledge', segments: [[0, 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n']] },
]

const ALLOWED: Connection[] = [
  { name: 'whole', segments: [[0, get('/public/page')]] },
  { name: 'whole, over IPv6', segments: [[0, get('/public/page')]], six: true },
  { name: 'cut', segments: cut(PUBLIC, 100) },
  { name: 'shuffled and doubled', segments: [...cut(PUBLIC, 300).reverse(), ...cut(PUBLIC, 170)] },
  { name: 'pipelined', segments: cut(get('/public/1') + get('/public/2') + get('/public/3'), 33) },
]

/** The second version of a request that has been judged already. */
const OVERLAP: Connection = {
  name: 'overlap',
  segments: [
    [0, get('/public')],
    [0, get('/secret')],
  ],
}

describe.skipIf(reason !== '')(`requests that a policy limits${reason}`, () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-judge-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  async function through(connections: Connection[], denial: Denial) {
    const [input, output, log] = ['in.pcap', 'returned.pcap', 'verdicts.jsonl'].map(name => join(folder, name))
    for (const file of [output, log]) rmSync(file, { force: true })
    const script = fileURLToPath(new URL('scene.py', import.meta.url))
    execFileSync(PYTHON, [script, JSON.stringify(connections), input])
    const report = asData(
      await runReplay({
        ...{ input, output, log, tunnel: tunnelOf({ profile: 'geneve' }), live: false, rate: 'max', workers: 1 },
        policy: { policies: [{ value: ONLY_PUBLIC, where: 'public.yaml' }], inventory: INVENTORY, denial },
      }),
    ) as ReportData
    const lines = readFileSync(log, 'utf8').trimEnd().split('\n')
    return { report, output, verdicts: lines.map(line => JSON.parse(line) as Record<string, string>) }
  }

  /** The last verdict of each connection. */
  const last = (verdicts: Record<string, string>[], connections: Connection[]) =>
    connections.map((_, i) => verdicts.findLast(one => Number(one.sourcePort) === 20_000 + i)!)

  const tshark = (file: string, filter: string, ...fields: string[]) =>
    execFileSync(
      'tshark',
      [
        '-r',
        file,
        '-o',
        'tcp.check_checksum:TRUE',
        '-Y',
        filter,
        '-T',
        'fields',
        ...fields.flatMap(one => ['-e', one]),
      ],
      { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] },
    )
      .trimEnd()
      .split('\n')
      .map(line => line.split('\t'))

  it('are reset wherever they were cut, and nothing of what was asked reaches the server', async () => {
    const { report, output, verdicts } = await through(DENIED, 'reset')
    const ends = last(verdicts, DENIED)
    for (const [i, { name }] of DENIED.entries()) expect(ends[i], name).toMatchObject({ action: 'reset' })
    expect(ends[0]).toMatchObject({
      rule: 'CiliumNetworkPolicy shop/public (public.yaml): ingress[0] (request)',
      detail: 'GET /secret',
    })
    expect(ends.at(-2)!.detail).toMatch(/^not HTTP\/1: /)
    expect(ends.at(-1)!.detail).toBe('not HTTP/1: http2')
    // What tshark can put together out of what came through is the allowed request in front of one that is not.
    expect(tshark(output, 'http.request and tcp.dstport == 80', 'http.request.uri')).toEqual([['/public']])
    expect(dropsOf(report.gateway)['inspect reset']).toBeGreaterThanOrEqual(DENIED.length)
    const resets = tshark(output, 'tcp.flags.reset == 1', 'tcp.srcport', 'tcp.checksum.status')
    expect(new Set(resets.map(([, status]) => status))).toEqual(new Set(['1']))
    expect(resets.filter(([port]) => port === '80').length).toBeGreaterThanOrEqual(DENIED.length)
  })

  it('are answered with 403 when told to', async () => {
    const { output, verdicts } = await through(DENIED.slice(0, 5), '403')
    for (const one of last(verdicts, DENIED.slice(0, 5))) expect(one.action).toBe('forbid')
    const answers = tshark(
      output,
      'http.response',
      'tcp.dstport',
      'http.response.code',
      'tcp.checksum.status',
      'http.file_data',
    )
    expect(answers.map(([port, code, status]) => [port, code, status])).toEqual(
      DENIED.slice(0, 5).map((_, i) => [`${20_000 + i}`, '403', '1']),
    )
  })

  it('pass when they are allowed, with every byte', async () => {
    const { report, output, verdicts } = await through(ALLOWED, 'reset')
    for (const [i, one] of last(verdicts, ALLOWED).entries())
      expect(one, ALLOWED[i].name).toMatchObject({ action: 'allow' })
    expect(report.unchanged).toBe(report.sent)
    expect(dropsOf(report.gateway)).toEqual({})
    expect(tshark(output, 'http.request.uri == "/public/3"', 'http.host')).toEqual([['server']])
  })

  it('have no second version', async () => {
    const { report, verdicts } = await through([OVERLAP], 'reset')
    expect(last(verdicts, [OVERLAP])[0].action).toBe('allow')
    expect(dropsOf(report.gateway)).toEqual({ 'inspect stream-overlap': 1 })
  })
})
