// The same rules and captures through Suricata and through a replay: both must tell the same flows by the same rules.

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { tunnelOf } from '../../../src/cli/options.ts'
import { ALLOW_ALL } from '../../../src/gateway/rules.ts'
import { readRuleFiles } from '../../../src/gateway/suricata/parse.ts'
import { runReplay } from '../../../src/lab/replay.ts'

const PYTHON = '/usr/bin/python3'
const missing = spawnSync(PYTHON, ['-c', 'import scapy']).status !== 0 || spawnSync('suricata', ['-V']).status !== 0
const reason = missing ? ' (skipped: needs python3-scapy and suricata)' : ''

interface Flow {
  name: string
  /** `ip` for another protocol, whose number is `port`. */
  kind?: 'udp' | 'icmp' | 'ip'
  port?: number
  client?: string
  six?: boolean
  isn?: number
  /** Side, offset in its stream, hexadecimal bytes. */
  said: [side: 0 | 1, offset: number, bytes: string][]
}

const hex = (text: string) => Buffer.from(text, 'latin1').toString('hex')
const ANSWER = 'HTTP/1.1 200 OK\r\nServer: evil-server\r\nContent-Length: 2\r\n\r\nok'
/** A text cut into parts of so many bytes. */
const cut = (text: string, size: number): Flow['said'] =>
  Array.from({ length: Math.ceil(text.length / size) }, (_, i) => [
    0,
    i * size,
    hex(text.slice(i * size, (i + 1) * size)),
  ])
const tcp = (name: string, text: string, more: Partial<Flow> = {}): Flow => ({
  name,
  said: [[0, 0, hex(text)]],
  ...more,
})
const asked = (name: string, head: string): Flow => ({
  name,
  said: [
    [0, 0, hex(head)],
    [1, 0, hex(ANSWER)],
  ],
})
const get = (target: string, more = '') => `GET ${target} HTTP/1.1\r\nHost: www.example.com\r\n${more}\r\n`

function query(name: string): string {
  const labels = name.split('.').map(label => String.fromCharCode(label.length) + label)
  return `\x12\x34\x01\0\0\x01\0\0\0\0\0\0${labels.join('')}\0\0\x01\0\x01`
}

function hello(name: string): string {
  const u16 = (n: number) => String.fromCharCode(n >> 8, n & 255)
  const server = `\0${u16(name.length)}${name}`
  const list = u16(server.length) + server
  const extensions = `\0\0${u16(list.length)}${list}\0\x0a\0\x04\0\x02\0\x1d\0\x2b\0\x03\x02\x03\x04`
  const body = `\x03\x03${'r'.repeat(32)}\0\0\x02\x13\x01\x01\0${u16(extensions.length)}${extensions}`
  const message = `\x01\0${u16(body.length)}${body}`
  return `\x16\x03\x01${u16(message.length)}${message}`
}

/** Says what flows and rules of a part are; the sids of rules are their places, from 1 on. */
const PARTS: Record<string, { flows: Flow[]; rules: string[] }> = {
  'contents of streams': {
    flows: [
      tcp('plain', 'xx ATTACK yy'),
      tcp('lower', 'xx attack yy'),
      tcp('at the start', 'ATTACK at once'),
      tcp('binary', '\x00\xffAB;:"\\|z'),
      tcp('two', 'user root pass toor end'),
      tcp('two, far apart', `user${'.'.repeat(300)}pass`),
      tcp('two, the other way round', 'pass before user'),
      tcp('again and again', 'aXaYabZ--aXb'),
      tcp('six', 'xx ATTACK over six', { six: true }),
      tcp('another port', 'ATTACK', { port: 8081 }),
      {
        name: 'from the server',
        said: [
          [0, 0, hex('hello')],
          [1, 0, hex('xx ATTACK yy')],
        ],
      },
    ],
    rules: [
      'tcp any any -> any any (content:"ATTACK";',
      'tcp any any -> any any (content:"attack"; nocase;',
      'tcp any any -> any any (content:"ATTACK"; depth:6;',
      'tcp any any -> any any (content:"ATTACK"; offset:3; depth:6;',
      'tcp any any -> any any (content:"ATTACK"; startswith;',
      'tcp any any -> any any (content:"|00 FF|AB\\;\\:\\"\\\\|7C|z";',
      'tcp any any -> any any (content:"user"; content:"pass"; distance:0;',
      'tcp any any -> any any (content:"user"; content:"pass"; distance:0; within:20;',
      'tcp any any -> any any (content:"user"; content:"pass";',
      'tcp any any -> any any (content:"user"; content:!"pass"; within:20;',
      'tcp any any -> any any (content:"a"; content:"b"; distance:1; within:1;',
      'tcp any any -> any any (content:"aX"; content:"b"; within:1;',
      'tcp any any -> any 8081 (content:"ATTACK";',
      'tcp any any -> any [80,8000:8080] (content:"ATTACK";',
      'tcp any any -> any !80 (content:"ATTACK";',
      'tcp any any -> any any (flow:to_server,established; content:"ATTACK";',
      'tcp any any -> any any (flow:to_client,established; content:"ATTACK";',
      'tcp any 80 -> any any (content:"ATTACK";',
      'tcp any any <> any 80 (content:"ATTACK";',
      'tcp-pkt any any -> any any (content:"ATTACK";',
      'tcp any any -> any any (content:"pass"; distance:-9; content:"e"; distance:-30; within:40;',
      'tcp [10.0.0.0/24,!10.0.0.1] any -> any any (content:"ATTACK";',
      'tcp fd00::/16 any -> any any (content:"ATTACK";',
      'tcp $EXTERNAL_NET any -> $HOME_NET any (content:"ATTACK";',
      'tcp $HOME_NET any -> $HOME_NET any (content:"ATTACK";',
      'tcp any any -> any any (content:"end"; endswith;',
      'ip any any -> any any (content:"ATTACK"; content:"yy"; distance:1; within:2;',
    ],
  },
  expressions: {
    flows: [
      tcp('digits', 'id=12345&x'),
      tcp('letters', 'id=abcde&x'),
      tcp('capitals', 'ID=777'),
      tcp('lines', 'first\r\nsecond: 1\r\n'),
      asked('a path', get('/dir/abc123.php?id=9')),
      asked('another path', get('/dir/abc.php')),
    ],
    rules: [
      'tcp any any -> any any (content:"id="; pcre:"/id=\\d{5}/";',
      'tcp any any -> any any (content:"id="; nocase; pcre:"/^id=[0-9]+/i";',
      'tcp any any -> any any (content:"id="; pcre:"/^\\d+/R";',
      'tcp any any -> any any (content:"id="; pcre:!"/\\d/R";',
      'tcp any any -> any any (pcre:"/^second\\x3a/m";',
      'tcp any any -> any any (pcre:"/first.second/";',
      'tcp any any -> any any (pcre:"/first.{2}second/s";',
      'tcp any any -> any any (pcre:"/first\\v+second/";',
      'tcp any any -> any any (pcre:"/t[\\v]{2}s/";',
      'http any any -> any any (http.uri; content:".php"; pcre:"/\\/[a-z]+\\d+\\.php\\?id=\\d$/U";',
      'http any any -> any any (content:".php"; http_uri; pcre:"/^\\/dir\\/[a-z]+\\.php$/U";',
      'http any any -> any any (http.header; content:"Host"; pcre:"/^Host: [^\\r\\n]+example/H";',
    ],
  },
  HTTP: {
    flows: [
      asked('plain', get('/index.html', 'User-Agent: Mozilla/5.0 bad-bot\r\n')),
      asked('a post', `POST /login HTTP/1.1\r\nHost: Evil.Example\r\nContent-Length: 9\r\n\r\nuser=root`),
      asked('encoded', get('/%61dmin/../adm%69n//panel\\x')),
      asked('a query', get('/q?cmd=%2Fbin%2Fsh+x')),
      asked('headers twice', get('/', 'X-Tag: one\r\nx-tag:  two \r\nCookie: secret=1\r\n')),
      asked('absolute', get('http://other.example/path?x=1')),
      asked('pipelined', get('/first') + get('/second', 'User-Agent: curl/8\r\n')),
      { name: 'cut', said: [...cut(get('/admin/panel'), 7), [1, 0, hex(ANSWER)]] },
      asked('letters beyond ASCII', get('/\xc3\xa4/admin', 'X-Name: \xc3\xa4\r\n')),
      asked('a control character', get('/\x01/admin')),
      asked('a null byte', get('/\0/admin')),
      asked('bare line feeds', get('/admin', 'User-Agent: curl/8\r\n').replaceAll('\r\n', '\n')),
      asked('bare line feeds, and more', (get('/one') + get('/\xe4/admin')).replaceAll('\r\n', '\n')),
      { name: 'letters beyond ASCII, cut', said: [...cut(get('/first') + get('/\xe4/admin'), 5), [1, 0, hex(ANSWER)]] },
      {
        name: 'another port',
        port: 8081,
        said: [
          [0, 0, hex(get('/admin'))],
          [1, 0, hex(ANSWER)],
        ],
      },
      tcp('no HTTP', 'SSH-2.0-admin /admin GET\r\n'),
    ],
    rules: [
      'http any any -> any any (http.method; content:"POST";',
      'http any any -> any any (http.uri; content:"/admin";',
      'http any any -> any any (http.uri; content:"/admin/panel/x"; startswith; endswith;',
      'http any any -> any any (http.uri.raw; content:"%61dmin";',
      'http any any -> any any (content:"ADMIN"; nocase; http_uri;',
      'http any any -> any any (http.uri; content:"cmd=/bin/sh+x"; endswith;',
      'http any any -> any any (http.host; content:"evil.example";',
      'http any any -> any any (http.host; content:"example";',
      'http any any -> any any (http.header; content:"X-Tag|3a| one, two|0d 0a|";',
      'http any any -> any any (http.header; content:"secret";',
      'http any any -> any any (http.user_agent; content:"bad-bot"; endswith;',
      'http any any -> any any (http.user_agent; content:"curl"; startswith; http.uri; content:"second";',
      'http any any -> any any (http.method; content:"GET"; http.uri; content:!"admin"; http.header; content:"User-Agent";',
      'http any any -> any any (http.uri; content:"/path?x=1"; startswith;',
      'http any any -> any any (http.uri; content:"|c3 a4|/admin";',
      'http any any -> any any (http.uri.raw; content:"|01|/admin"; endswith;',
      'http any any -> any any (http.header; content:"|c3 a4|";',
      'tcp any any -> any any (flow:established,to_server; content:"/login"; http_uri; content:"POST"; http_method;',
      'http any any -> any any (content:"user=root";',
      'http any any -> any any (flow:to_client; content:"evil-server";',
      'http any any -> any any (flow:to_server;',
      'tcp any any -> any any (content:"/admin";',
    ],
  },
  'TLS and DNS': {
    flows: [
      { name: 'hello', port: 443, said: [[0, 0, hex(hello('evil.example'))]] },
      { name: 'hello in pieces', port: 8443, said: cut(hello('evil.example'), 9) },
      { name: 'another hello', port: 443, said: [[0, 0, hex(hello('good.example'))]] },
      { name: 'query', kind: 'udp', port: 53, said: [[0, 0, hex(query('www.evil.example'))]] },
      { name: 'capitals', kind: 'udp', port: 53, said: [[0, 0, hex(query('www.Evil.example'))]] },
      { name: 'another', kind: 'udp', port: 53, said: [[0, 0, hex(query('good.example'))]] },
      { name: 'no query', kind: 'udp', port: 5353, said: [[0, 0, hex('evil.example')]] },
      {
        name: 'query by TCP',
        port: 53,
        said: [[0, 0, hex(`\0${String.fromCharCode(query('a.evil.example').length)}${query('a.evil.example')}`)]],
      },
    ],
    rules: [
      'tls any any -> any any (tls.sni; content:"evil.example"; startswith; endswith;',
      'tls any any -> any any (tls.sni; content:"example"; nocase;',
      'tls any any -> any any (tls_sni; pcre:"/^(evil|bad)\\./";',
      'dns any any -> any any (dns.query; content:"evil.example"; endswith;',
      'dns any any -> any any (dns.query; content:"EVIL"; nocase;',
      'dns any any -> any any (dns_query; pcre:"/^www\\./";',
      'udp any any -> any 53 (content:"evil";',
      'udp any any -> any !53 (content:"evil.example"; depth:12;',
      'tcp any any -> any any (content:"evil.example";',
    ],
  },
  'addresses of both families': {
    flows: [
      tcp('four', 'ATTACK'),
      tcp('another four', 'ATTACK', { client: '192.0.2.1' }),
      tcp('six', 'ATTACK', { six: true }),
    ],
    rules: [
      'tcp !10.0.0.1 any -> any any (content:"ATTACK";',
      'tcp !fd00::/8 any -> any any (content:"ATTACK";',
      'tcp !fd00::9 any -> any any (content:"ATTACK";',
      'tcp $EXTERNAL_NET any -> any any (content:"ATTACK";',
      'tcp [!10.0.0.1,!fd00::9] any -> any any (content:"ATTACK";',
      'tcp [fd00::/8,!10.0.0.1] any -> any any (content:"ATTACK";',
      'tcp [any,!10.0.0.1] any -> any any (content:"ATTACK";',
    ],
  },
  'protocols that are known before their heads are whole': {
    flows: [
      {
        name: 'a long head',
        said: [...cut(get('/ATTACK', `X-Long: ${'z'.repeat(12_000)}\r\n`), 1000), [1, 0, hex(ANSWER)]],
      },
      { name: 'a small part of one', said: [...cut(get('/of/it'), 7), [1, 0, hex(ANSWER)]] },
      tcp('no HTTP', 'ATTACK GET /of/it'),
    ],
    rules: [
      'http any any -> any any (flow:to_server; content:"ATTACK";',
      'http any any -> any any (flow:to_server; content:"/it"; depth:3;',
      'tls any any -> any any (content:"ATTACK";',
    ],
  },
  datagrams: {
    flows: [
      { name: 'one way', kind: 'udp', port: 9000, said: [[0, 0, hex('PING one')]] },
      {
        name: 'both ways',
        kind: 'udp',
        port: 9000,
        said: [
          [0, 0, hex('PING')],
          [1, 0, hex('PONG')],
          [0, 0, hex('PING two')],
        ],
      },
      {
        name: 'echo',
        kind: 'icmp',
        port: 0,
        said: [
          [0, 0, hex('covert data')],
          [1, 0, hex('covert data')],
        ],
      },
    ],
    rules: [
      'udp any any -> any 9000 (content:"PING";',
      'udp any any -> any any (content:"PONG"; flow:to_client;',
      'udp any any -> any any (content:"PING"; flow:established;',
      'udp any any -> any any (content:"PING"; flow:established,to_server; content:"two"; distance:1;',
      'udp any any -> any any (content:"PING two"; depth:8;',
      'icmp any any -> any any (content:"covert";',
      'udp any any -> any any (content:"PING"; flow:only_stream;',
      'udp any any -> any any (content:!"PONG"; content:!"two";',
    ],
  },
  'rules that let pass': {
    flows: [
      tcp('both at once', 'friend ATTACK'),
      {
        name: 'friend first',
        said: [
          [0, 0, hex('friend')],
          [1, 0, hex('hm')],
          [0, 6, hex(' ATTACK')],
        ],
      },
      tcp('no friend', 'ATTACK'),
      asked('a request', get('/friend', 'User-Agent: ATTACK\r\n')),
      asked('another', get('/foe', 'User-Agent: ATTACK\r\n')),
    ],
    rules: [
      'pass tcp any any -> any any (content:"friend";',
      'tcp any any -> any any (content:"ATTACK";',
      'http any any -> any any (http.user_agent; content:"ATTACK";',
    ],
  },
  evasions: {
    flows: [
      { name: 'a byte a segment', said: cut('xx ATTACK yy ENDED', 1) },
      { name: 'backwards', said: cut('xx ATTACK yy ENDED', 4).reverse() },
      { name: 'shuffled', said: [1, 0, 3, 2, 4].map(i => cut('xx ATTACK yy ENDED', 4)[i]) },
      { name: 'across the wrap', isn: 0xffff_ffff - 1000 - 6, said: cut('xx ATTACK yy ENDED', 4) },
      { name: 'sent twice', said: [...cut('xx ATTACK yy ENDED', 6), ...cut('xx ATTACK yy ENDED', 9)] },
      {
        name: 'overlapping',
        said: [
          [0, 0, hex('xx ATT')],
          [0, 4, hex('TTACK y')],
          [0, 9, hex('CK yy ENDED').slice(2)],
        ],
      },
      { name: 'behind much else', said: cut(`${'z'.repeat(5000)}ATTACK yy ENDED`, 1000) },
      { name: 'a request backwards', said: [...cut(get('/admin'), 11).reverse(), [1, 0, hex(ANSWER)]] },
    ],
    rules: [
      'tcp any any -> any any (content:"ATTACK";',
      'tcp any any -> any any (content:"ATTACK"; content:"ENDED"; distance:0;',
      'tcp any any -> any any (content:"ATTACK"; content:"ENDED"; distance:4; within:5;',
      'tcp any any -> any any (content:"attack yy ended"; nocase;',
      'tcp any any -> any any (content:"ATT"; pcre:"/ATT\\w+ y{2}/";',
      'http any any -> any any (http.uri; content:"/admin"; startswith;',
    ],
  },
}

describe.skipIf(reason !== '')(`rules find what Suricata finds by them${reason}`, () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-suricata-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  function capture(flows: Flow[]): string {
    const input = join(folder, 'in.pcap')
    const script = fileURLToPath(new URL('scene.py', import.meta.url))
    execFileSync(PYTHON, [script, JSON.stringify(flows), input], { stdio: ['ignore', 'ignore', 'inherit'] })
    return input
  }

  function rulesFile(lines: string[]): string {
    const path = join(folder, 'test.rules')
    writeFileSync(path, `${lines.join('\n')}\n`, 'latin1')
    return path
  }

  /** Alerts of EVE lines: `sid name-of-flow`, each once. */
  const alerts = (path: string, flows: Flow[]) => {
    const events = readFileSync(path, 'utf8')
      .trimEnd()
      .split('\n')
      .filter(line => line !== '')
      .map(line => JSON.parse(line))
    const told = events
      .filter(event => event.event_type === 'alert')
      .map(({ alert, src_port: from = 0, dest_port: to = 0 }) => {
        const number = Math.max(from, to) - 20_000
        return `${alert.signature_id} ${flows[number]?.name ?? 'icmp'}`
      })
    return [...new Set(told)].sort()
  }

  function bySuricata(input: string, rules: string, flows: Flow[]): string[] {
    const logs = join(folder, 'logs')
    rmSync(logs, { recursive: true, force: true })
    mkdirSync(logs)
    const args = [
      '-c',
      '/etc/suricata/suricata.yaml',
      '-r',
      input,
      '-S',
      rules,
      '-l',
      logs,
      '-k',
      'none',
      '--runmode',
      'single',
    ]
    const ran = spawnSync('suricata', args, { encoding: 'utf8' })
    expect(ran.stderr + ran.stdout).not.toMatch(/error parsing/)
    return alerts(join(logs, 'eve.json'), flows)
  }

  async function byReplay(input: string, rules: string, flows: Flow[], workers = 1): Promise<string[]> {
    const eve = join(folder, 'eve.json')
    rmSync(eve, { force: true })
    const { signatures } = readRuleFiles([rules], {}, 'refuse')
    await runReplay({
      input,
      eve,
      signatures,
      tunnel: tunnelOf({}),
      policy: ALLOW_ALL,
      live: false,
      rate: 'max',
      workers,
    })
    return alerts(eve, flows)
  }

  for (const [name, { flows, rules }] of Object.entries(PARTS))
    it(name, async () => {
      const input = capture(flows)
      const path = rulesFile(
        rules.map(
          (rule, i) => `${rule.startsWith('pass') ? '' : 'alert '}${rule} msg:"rule ${i + 1}"; sid:${i + 1}; rev:1;)`,
        ),
      )
      const expected = bySuricata(input, path, flows)
      expect(expected.length).toBeGreaterThan(rules.length / 2)
      expect(await byReplay(input, path, flows)).toEqual(expected)
    })

  it('and tell of it in the same words', async () => {
    const flows = [
      asked('HTTP', `GET /a?b HTTP/1.1\r\nHost: Www.Example.com:80\r\nUser-Agent: bot\r\nReferer: http://x/\r\n\r\n`),
      { name: 'TLS', port: 443, said: [[0, 0, hex(hello('evil.example'))]] } satisfies Flow,
      { name: 'DNS', kind: 'udp', port: 53, said: [[0, 0, hex(query('Evil.example'))]] } satisfies Flow,
      tcp('over IPv6', 'ATTACK', { six: true }),
      { name: 'ICMP', kind: 'icmp', port: 0, said: [[0, 0, hex('covert')]] } satisfies Flow,
      { name: 'OSPF', kind: 'ip', port: 89, client: '10.0.0.77', said: [[0, 0, hex('hello')]] } satisfies Flow,
      {
        name: 'answer',
        kind: 'udp',
        port: 9000,
        said: [
          [0, 0, hex('a')],
          [1, 0, hex('PONG')],
        ],
      } satisfies Flow,
    ]
    const told = 'msg:"It \\"is\\""; classtype:trojan-activity; rev:4; metadata:a b, c d;'
    const rules = rulesFile([
      `alert http any any -> any any (http.uri; content:"/a"; ${told} sid:1;)`,
      `alert tls any any -> any any (tls.sni; content:"evil"; ${told} sid:2;)`,
      `alert dns any any -> any any (dns.query; content:"Evil"; ${told} sid:3;)`,
      `alert tcp any any -> any any (content:"ATTACK"; priority:2; sid:4;)`,
      `alert icmp any any -> any any (content:"covert"; gid:7; sid:5;)`,
      `alert udp any any -> any any (content:"PONG"; classtype:misc-activity; sid:6;)`,
      'alert ip 10.0.0.77 any -> any any (sid:7;)',
    ])
    const input = capture(flows)
    const theirs = bySuricata(input, rules, flows)
    expect(await byReplay(input, rules, flows)).toEqual(theirs)
    const events = (path: string) =>
      readFileSync(path, 'utf8')
        .trimEnd()
        .split('\n')
        .map(line => JSON.parse(line))
        .filter(event => event.event_type === 'alert')
        .sort((a, b) => a.alert.signature_id - b.alert.signature_id)
    const ours = events(join(folder, 'eve.json'))
    expect(ours).toHaveLength(7)
    // What ours say, theirs say too; but a flow has another number, and a stream's end may be what makes theirs look.
    for (const [i, event] of events(join(folder, 'logs', 'eve.json')).entries()) {
      const { flow_id: _, timestamp, app_proto: __, ...rest } = ours[i]
      expect(event).toMatchObject(rest)
      expect(timestamp).toMatch(/^2023-11-14T22:13:2\d\.\d{6}\+0000$/)
      expect(event.timestamp).toMatch(/^2023-11-14T22:13:2\d\.\d{6}\+0000$/)
    }
  })

  it('and several workers tell what one tells', async () => {
    const { flows, rules } = PARTS.HTTP
    const input = capture(flows)
    const path = rulesFile(rules.map((rule, i) => `alert ${rule} sid:${i + 1};)`))
    expect(await byReplay(input, path, flows, 2)).toEqual(await byReplay(input, path, flows))
  })
})
