// What clients ask in a capture, flow by flow: as the gateway's engine reads it, in which a replay ends, and as tshark does.

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { vi } from 'vitest'
import { tunnelOf } from '../../../src/cli/options.ts'
import type { Device } from '../../../src/device/device.ts'
import { closeCapture, openCapture, PcapReader } from '../../../src/device/pcap.ts'
import { FragmentTable } from '../../../src/flow/fragments.ts'
import { FIXED_SEED } from '../../../src/flow/hash.ts'
import { readKey } from '../../../src/flow/key.ts'
import { createFlowTable } from '../../../src/flow/layout.ts'
import { Engine } from '../../../src/gateway/engine.ts'
import { ALLOW_ALL } from '../../../src/gateway/rules.ts'
import { SignatureJudge } from '../../../src/gateway/suricata/judge.ts'
import { parseRules } from '../../../src/gateway/suricata/parse.ts'
import { Batch } from '../../../src/memory/batch.ts'
import { Counters } from '../../../src/memory/counters.ts'
import { createPool, HEADROOM, Pool, SUPER_FRAME } from '../../../src/memory/pool.ts'
import { Encap } from '../../../src/pipeline/encap.ts'
import { parse } from '../../../src/pipeline/parse.ts'
import * as ipv4 from '../../../src/wire/ipv4.ts'
import * as ipv6 from '../../../src/wire/ipv6.ts'
import * as udp from '../../../src/wire/udp.ts'

/** What was asked, in order, by `protocol client:port > server:port`. */
export type Asked = Record<string, string[]>

const say = {
  http: (method: string, host: string | undefined, uri: string) => `HTTP ${method} ${host ?? '-'} ${uri}`,
  tls: (name: string | undefined, alpn: string[]) => `TLS ${name ?? '-'} ${alpn.join(',')}`.trimEnd(),
  // tshark writes what cannot be printed in several ways.
  dns: (name: string, type: string | number) =>
    `DNS ${name.replaceAll(/(?:\\\d{3}|[^\x20-\x7e])+/g, '?') || '<Root>'} ${type}`,
}

function add(asked: Asked, flow: string, what: string): void {
  ;(asked[flow] ??= []).push(what)
}

/** As the engine reads it, which gets the packets through a tunnel. */
export async function byEngine(path: string): Promise<Asked> {
  const asked: Asked = {}
  let flow = ''
  const pool = new Pool(createPool({ frames: 256, frameSize: SUPER_FRAME, headroom: HEADROOM }))
  const spies = [
    vi.spyOn(SignatureJudge.prototype, 'packet').mockImplementation(frame => {
      flow = nameOf(pool, frame)
    }),
    vi.spyOn(SignatureJudge.prototype, 'request').mockImplementation((_, head) => {
      const host = head.headers.find(([name]) => name.toLowerCase() === 'host')?.[1]
      add(asked, flow, say.http(head.method, host, head.target))
    }),
    vi.spyOn(SignatureJudge.prototype, 'hello').mockImplementation((_, hello) => {
      add(asked, flow, say.tls(hello.serverName, hello.alpn))
    }),
    vi.spyOn(SignatureJudge.prototype, 'question').mockImplementation((_, { raw, type }) => {
      add(asked, flow, say.dns(raw, type))
    }),
  ]
  const counters = new Counters()
  const input = await openCapture(path)
  const reader = new PcapReader(pool, counters.stage('read'), input)
  const tunnel = tunnelOf({ profile: 'vxlan' })
  const rules = 'alert ip any any -> any any (msg:"all"; sid:1;)'
  const device = tunnelled(pool, reader, new Encap(pool, counters.stage('encap'), tunnel))
  const engine = new Engine(pool, counters, device, {
    ...{ tunnel, own: [tunnel.remote as number[]], policy: ALLOW_ALL, seed: FIXED_SEED, logFd: -1, live: false },
    flows: createFlowTable({ capacity: 4096 }),
    signatures: { rules: parseRules([{ file: 'all', text: rules }], {}, 'refuse').signatures, eveFd: -1 },
  })
  try {
    const batch = new Batch()
    while (engine.leg.device.receive(batch) > 0 || !reader.exhausted) engine.leg.run(batch)
    if (reader.fault !== undefined) throw reader.fault
  } finally {
    closeCapture(input)
    for (const spy of spies) spy.mockRestore()
  }
  return asked
}

/** A device at which a capture's packets arrive in a tunnel. */
function tunnelled(pool: Pool, reader: PcapReader, encap: Encap): Device {
  const fragments = new FragmentTable()
  const good = (frame: number) =>
    parse(pool, frame, pool.start[frame], pool.start[frame] + pool.length[frame]) === 0 &&
    readKey(pool, frame, fragments, FIXED_SEED, false) === 0
  return {
    ...{ name: 'tunnelled', capabilities: 0, fd: -1, exhausted: false },
    receive(batch) {
      const received = reader.receive(batch)
      const frames = [...batch.frames.subarray(0, batch.length)]
      batch.length = 0
      for (const frame of frames)
        if (good(frame)) batch.push(frame)
        else pool.free(frame)
      encap.run(batch)
      return received
    },
    transmit: batch => pool.freeAll(batch),
    close() {},
  }
}

function nameOf(pool: Pool, frame: number): string {
  const { bytes } = pool
  const at = pool.network[frame]
  const four = bytes[at] >> 4 === 4
  const text = (offset: number) =>
    four
      ? bytes.subarray(at + offset, at + offset + 4).join('.')
      : ipv6.formatAddress(bytes.subarray(at + offset, at + offset + 16))
  const protocol = pool.protocol[frame] === ipv4.PROTOCOL.TCP ? 'tcp' : 'udp'
  const transport = pool.transport[frame]
  const [from, to] = [udp.sourcePort(bytes, transport), udp.destinationPort(bytes, transport)]
  return `${protocol} ${text(four ? 12 : 8)}:${from} > ${text(four ? 16 : 24)}:${to}`
}

type Layer = Record<string, unknown>

/** As tshark reads it, with everything put together that it can put together. */
export async function byTshark(path: string): Promise<Asked> {
  const set = ['tcp.reassemble_out_of_order:TRUE', 'dns.desegment_dns_messages:TRUE']
  const { stdout } = await promisify(execFile)(
    'tshark',
    [
      ...['-r', path, '-n', '-T', 'json', '--no-duplicate-keys', '--enable-heuristic', 'http_tcp'],
      ...['-J', 'ip ipv6 tcp udp http tls dns', ...set.flatMap(one => ['-o', one])],
      ...['-Y', 'http.request or tls.handshake.type == 1 or (dns and dns.flags.response == 0)'],
    ],
    { encoding: 'latin1', maxBuffer: 1 << 28 },
  )
  const asked: Asked = {}
  for (const { _source } of JSON.parse(stdout || '[]')) {
    const { ip, ipv6: six, tcp, udp: datagram, http, tls, dns } = _source.layers
    const [inner] = [ip ?? six].flat().slice(-1)
    const [ports] = [tcp ?? datagram].flat().slice(-1)
    const protocol = tcp === undefined ? 'udp' : 'tcp'
    const address = (end: string) => inner[`ip.${end}`] ?? inner[`ipv6.${end}`]
    const port = (end: string) => ports[`${protocol}.${end}port`]
    const flow = `${protocol} ${address('src')}:${port('src')} > ${address('dst')}:${port('dst')}`
    for (const layer of several(http)) request(asked, flow, layer)
    for (const layer of several(tls)) hellos(asked, flow, layer)
    for (const layer of several(dns)) questions(asked, flow, layer)
  }
  return asked
}

const several = (value: unknown): Layer[] =>
  [value ?? []].flat().filter((one): one is Layer => typeof one === 'object' && one !== null)

/** Every value of a field, however deep. */
function find(layer: Layer, field: string): unknown[] {
  return Object.entries(layer).flatMap(([key, value]) => [
    ...(key === field ? [value].flat() : []),
    ...several(value).flatMap(one => find(one, field)),
  ])
}

function request(asked: Asked, flow: string, layer: Layer): void {
  const [method] = find(layer, 'http.request.method')
  const [uri] = find(layer, 'http.request.uri')
  const [host] = find(layer, 'http.host')
  if (method !== undefined) add(asked, flow, say.http(`${method}`, host as string | undefined, `${uri}`))
}

function hellos(asked: Asked, flow: string, layer: Layer): void {
  const messages = find(layer, 'tls.handshake').filter(one => (one as Layer)['tls.handshake.type'] === '1') as Layer[]
  for (const message of messages) {
    const [name] = find(message, 'tls.handshake.extensions_server_name')
    add(
      asked,
      flow,
      say.tls(name as string | undefined, find(message, 'tls.handshake.extensions_alpn_str') as string[]),
    )
  }
}

function questions(asked: Asked, flow: string, layer: Layer): void {
  for (const query of several(layer.Queries).flatMap(one => Object.values(one).flatMap(several)))
    add(asked, flow, say.dns(`${query['dns.qry.name']}`.replaceAll(/\\[rnt]/g, '?'), `${query['dns.qry.type']}`))
}
