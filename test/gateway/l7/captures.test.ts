// Other people's captures: every HTTP request, TLS hello and DNS query that tshark finds in them is found by the gateway,
// and nothing else; where the two differ by design, the table says how, and why.

import { execFileSync, spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { describe, expect, it } from 'vitest'
import { tunnelOf } from '../../../src/cli/options.ts'
import { DROP } from '../../../src/drop.ts'
import { ALLOW_ALL } from '../../../src/gateway/rules.ts'
import { parseRules } from '../../../src/gateway/suricata/parse.ts'
import { runReplay } from '../../../src/lab/replay.ts'
import { type Asked, byEngine, byTshark } from './seen.ts'

const CAPTURES = new URL('../../../fixtures/captures/', import.meta.url).pathname
const FILES = ['', 'dnscap/', 'gopacket/', 'ndpi/', 'tcpdump/'].flatMap(folder =>
  readdirSync(`${CAPTURES}${folder}`)
    .filter(name => /\.pcap(?:ng)?$/.test(name))
    .map(name => `${folder}${name}`),
)

const nothing = () => ({})
/** Of every flow what was asked first. */
const first = (theirs: Asked) => Object.fromEntries(Object.entries(theirs).map(([flow, [one]]) => [flow, [one]]))
const without =
  (...ports: number[]) =>
  (theirs: Asked) =>
    Object.fromEntries(Object.entries(theirs).filter(([flow]) => !ports.some(port => flow.includes(`:${port} >`))))

/** What the gateway finds, given what tshark does. */
const DIFFERENT: Record<string, { why: string; ours: (theirs: Asked) => Asked }> = {
  'dnscap/frags.pcap': { why: 'queries in fragments are not put together, but dropped', ours: nothing },
  'ndpi/4in6tunnel.pcap': { why: 'tunnels within the tunnel are not taken apart', ours: nothing },
  'ndpi/WebattackRCE-49716-50632.pcap': {
    why: 'a target without /, or with a tab, is no HTTP for llhttp',
    ours: nothing,
  },
  'ndpi/dnscrypt-v2-doh-59026.pcap': {
    why: 'the second hello, after HelloRetryRequest, must be as the first',
    ours: first,
  },
  'ndpi/ftp-start-tls.pcap': { why: 'TLS that begins within another protocol is not looked for', ours: nothing },
  'ndpi/pps-49174.pcap': { why: 'the server is seen first and taken for the client', ours: nothing },
  'ndpi/tls_cipher_lens.pcap': {
    why: 'a hello whose lengths do not add up is none',
    ours: without(51589, 51590, 51591),
  },
  'ndpi/tls_invalid_reads.pcap': {
    why: 'a hello whose lengths do not add up is none, nor one within GTP',
    ours: nothing,
  },
  'ndpi/tls_port_80.pcapng': {
    why: 'a hello is known by its bytes, whatever the port',
    ours: () => ({ 'tcp 57.91.202.194:50541 > 132.49.141.56:80': ['TLS -'] }),
  },
  'ndpi/whois.pcapng': { why: 'packets with a VLAN tag are dropped', ours: nothing },
}

const missing = spawnSync('tshark', ['-v']).status !== 0
const title = `what is asked in captures${missing ? ' (skipped: needs tshark)' : ''}`

describe.skipIf(missing)(title, () => {
  it.each(FILES)('%s', async name => {
    const [ours, theirs] = await Promise.all([byEngine(`${CAPTURES}${name}`), byTshark(`${CAPTURES}${name}`)])
    const different = DIFFERENT[name]
    expect(ours, different?.why).toEqual(different === undefined ? theirs : different.ours(theirs))
    if (different !== undefined) expect(ours).not.toEqual(theirs)
  })

  it('queries in fragments are dropped, answers are not', async () => {
    const input = `${CAPTURES}dnscap/frags.pcap`
    const rule = 'alert dns any any -> any any (msg:"a query"; dns.query; content:"google"; sid:1;)'
    const { signatures } = parseRules([{ file: 'rules', text: rule }], {}, 'refuse')
    const limits = { tunnel: tunnelOf({}), policy: ALLOW_ALL, signatures }
    const { gateway } = await runReplay({ input, ...limits, live: false, rate: 'max', workers: 1 })
    const drops = gateway.find(({ name }) => name === 'inspect')!.drops(DROP.STREAM_UNCLEAR)
    const filter = 'ip.dst == 8.8.8.8 and (ip.flags.mf == 1 or ip.frag_offset > 0)'
    const fragments = execFileSync('tshark', ['-r', input, '-Y', filter], { encoding: 'utf8', stdio: 'pipe' })
    expect(drops).toBe(fragments.trimEnd().split('\n').length)
  })

  it('are all there', () => {
    expect(FILES).toEqual(expect.arrayContaining(Object.keys(DIFFERENT)))
    expect(FILES.length).toBeGreaterThan(60)
  })
})
