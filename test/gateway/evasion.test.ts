// Evasions, end to end: scapy sends, Linux' TCP and Python's HTTP server read, and the gateway between them must not let
// through what these would read and a policy or a signature denies. Each scene is played without a gateway first.

import { type ChildProcessByStdio, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { tunnelOf } from '../../src/cli/options.ts'
import { asData } from '../../src/cli/replay.ts'
import type { Policy } from '../../src/gateway/judge.ts'
import { ALLOW_ALL } from '../../src/gateway/rules.ts'
import { parseRules } from '../../src/gateway/suricata/parse.ts'
import { runReplay } from '../../src/lab/replay.ts'
import { createNamespace, deleteNamespace, inNamespace } from '../../src/os/netns.ts'
import type { ReportData } from '../lab/accounts.ts'
import { missing, title } from '../netns/support.ts'
import { pcapOf } from '../pipeline/tshark.ts'
import { type Came, type Gateway, gateway, type Verdict } from './evasion-gateway.ts'

const PYTHON = '/usr/bin/python3'
const NAMESPACE = `dte${process.pid}`
const HOUR_MS = 3_600_000

const pod = (name: string, ip: string) => ({
  kind: 'Pod',
  metadata: { name, namespace: 'shop', labels: { app: name } },
  status: { phase: 'Running', podIPs: [{ ip }] },
})
const POLICY: Policy = {
  policies: [
    {
      where: 'public.yaml',
      value: {
        apiVersion: 'cilium.io/v2',
        kind: 'CiliumNetworkPolicy',
        metadata: { name: 'public', namespace: 'shop' },
        spec: {
          endpointSelector: { matchLabels: { app: 'server' } },
          ingress: [{ toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ path: '/public.*' }] } }] }],
        },
      },
    },
  ],
  inventory: [
    {
      where: 'inventory',
      value: { kind: 'List', items: [pod('client', '10.0.0.1'), pod('server', '10.0.0.2')] },
    },
  ],
  denial: 'reset',
}
const RULES = `
drop http any any -> any any (msg:"secret"; http.uri; content:"/secret"; sid:1;)
drop tcp any any -> any any (msg:"secret"; content:"GET /secret"; sid:2;)`

const SECRET = 'reset: GET /secret'
const UNSEEN = 'reset: not HTTP/1: the beginning of its connection was not seen'
const DIFFERENT = 'reset: not HTTP/1: a path that servers read differently'
const FOLDED = 'reset: not HTTP/1: Unexpected whitespace after header value'
const VERSION = 'reset: not HTTP/1: a request line without HTTP version'
const URI = 'drop: signature 1:1:0 secret'
const TEXT = 'drop: signature 1:2:0 secret'

/** What each gateway does, that with a policy and that with signatures: the first verdict that is not `allow`, or why it drops segments. */
const EVASIONS: Record<string, [policy: string, signatures: string]> = {
  'an insert with a wrong TCP checksum': ['stream-overlap', 'stream-overlap'],
  'an insert with a wrong IP checksum': ['stream-overlap', 'stream-overlap'],
  'an insert whose TTL ends before the server': ['stream-overlap', 'stream-overlap'],
  'an insert without ACK': ['stream-overlap', 'stream-overlap'],
  'an insert that acknowledges what was never sent': ['stream-overlap', 'stream-overlap'],
  'an insert with an MD5 signature': ['stream-overlap', 'stream-overlap'],
  'an insert longer than what is kept, whose TTL ends before the server': [
    'stream-overlap,stream-full',
    'stream-overlap,stream-full',
  ],
  'a byte a segment': [SECRET, TEXT],
  'a byte a segment, backwards': [SECRET, URI],
  'split over the MTU': [SECRET, TEXT],
  'an overlap behind a gap, denied first': [SECRET, URI],
  'a RST with a wrong number': [SECRET, TEXT],
  'a RST whose TTL ends before the server': [SECRET, TEXT],
  'a RST with a wrong number, and a rest that is allowed when it has been forgotten': [UNSEEN, TEXT],
  'a rest that is allowed, after so long that the flow has been forgotten': [UNSEEN, TEXT],
  'a request after so long that the flow has been forgotten, and the server speaks first': [UNSEEN, TEXT],
  'a rest that is allowed behind a second SYN, after so long that the flow has been forgotten': [UNSEEN, TEXT],
  'a FIN with a wrong number': [SECRET, TEXT],
  'a FIN whose TTL ends before the server': ['stream-overlap', 'stream-overlap'],
  'a SYN with data that the server ignores': ['stream-unclear', 'stream-unclear'],
  'a SYN with data in front of another SYN': [SECRET, URI],
  'another SYN before the one that counts, with a larger number': [UNSEEN, URI],
  'another SYN before the one that counts, with a smaller number': [UNSEEN, URI],
  'another SYN in the middle, which the server refuses': [SECRET, TEXT],
  'another connection from the same port': [SECRET, URI],
  'an urgent byte that is not read': ['stream-unclear', URI],
  'an urgent pointer in an empty segment': ['stream-unclear', URI],
  'fragments of IP': ['stream-unclear', 'stream-unclear'],
  'fragments of IP, backwards': ['reset,stream-unclear', 'stream-unclear'],
  'fragments of IP after a part that is allowed': ['stream-unclear', 'stream-unclear'],
  'a path with an encoded letter': ['reset: GET /%73ecret', URI],
  'dots encoded': ['reset: GET /public/%2e%2e/secret', URI],
  'dots encoded in mixed case': ['reset: GET /public/%2E%2e/secret', URI],
  'a slash encoded': [DIFFERENT, URI],
  'slashes encoded': [DIFFERENT, URI],
  'a slash encoded behind an allowed beginning': [DIFFERENT, URI],
  'a null byte encoded': ['reset: GET /public%00/../secret', URI],
  'a null byte in the path': ['reset: not HTTP/1: Invalid char in url path', URI],
  'an absolute form': ['reset: GET http://server/secret', URI],
  'no version': [VERSION, TEXT],
  'no version behind an allowed request': [VERSION, TEXT],
  'bare line feeds': ['reset: not HTTP/1: Expected CRLF after version', URI],
  'two spaces': [SECRET, URI],
  'a folded header': [FOLDED, URI],
  'a folded header that hides the next': [FOLDED, URI],
  'behind a body': [SECRET, URI],
  'behind chunks': [SECRET, URI],
  'behind chunks with extensions': [SECRET, URI],
  'behind a chunk of an odd size': ['reset: not HTTP/1: Invalid character in chunk size', TEXT],
  'both a length and chunks': ["reset: not HTTP/1: Transfer-Encoding can't be present with Content-Length", URI],
}

/** As before; what Linux or Python's server does not fall for, others may. */
const ELSEWHERE: typeof EVASIONS = {
  'an overlap behind a gap, old first': ['stream-overlap', 'stream-overlap'],
  'dots encoded twice': [DIFFERENT, URI],
  'dots behind an encoded slash that lead to what is allowed': [DIFFERENT, TEXT],
  'dots behind two slashes': [DIFFERENT, TEXT],
  backslashes: [DIFFERENT, URI],
  'a parameter behind dots': [DIFFERENT, URI],
  'a null byte in a header': ['reset: not HTTP/1: Invalid header value char', 'allow'],
  'UTF-8 that is too long': [DIFFERENT, URI],
  'a method in small letters': ['reset: not HTTP/1: Invalid method encountered', 'allow'],
  'two hosts': ['reset: not HTTP/1: more than one Host', 'allow'],
  'chunks in HTTP/1.0': ['reset: not HTTP/1: Transfer-Encoding in HTTP/1.0', URI],
}

const ALLOWED = [
  'allowed: cut, shuffled and sent twice',
  'allowed: a SYN twice, and another connection from the same port',
  'allowed: more than is kept, which the server acknowledges',
  'allowed: an encoded slash and odd letters',
]

interface Played {
  read: string[]
  bytes: number
  port: number
}

/** The namespace with attacker, router and server. */
class Stage {
  private readonly child: ChildProcessByStdio<Writable, Readable, null>
  private readonly lines: AsyncIterator<string>

  constructor() {
    createNamespace(NAMESPACE)
    const script = fileURLToPath(new URL('evasion.py', import.meta.url))
    this.child = inNamespace(NAMESPACE, () => spawn(PYTHON, [script], { stdio: ['pipe', 'pipe', 'inherit'] }))
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]()
  }

  /** What the scripts say next. */
  async hear() {
    const { value, done } = await this.lines.next()
    if (done) throw new Error('the stage is gone')
    return JSON.parse(value)
  }

  tell(what: object): void {
    this.child.stdin.write(`${JSON.stringify(what)}\n`)
  }

  /** What the server reads in a scene. */
  async play(scene: string, between?: Gateway): Promise<Played> {
    this.tell({ scene, gateway: between !== undefined })
    for (;;) {
      const said = await this.hear()
      if (said.frame === undefined) return said
      const frames = between!.exchange(Buffer.from(said.frame, 'hex'), said.time)
      this.tell({ frames: frames.map(frame => Buffer.from(frame).toString('hex')) })
    }
  }

  async close() {
    const closed = new Promise(resolve => this.child.once('close', resolve))
    this.child.stdin.end()
    await closed
    deleteNamespace(NAMESPACE)
  }
}
const withPolicy = () => gateway(POLICY, [])
const withSignatures = () => gateway(ALLOW_ALL, parseRules([{ file: 'rules', text: RULES }], {}, 'refuse').signatures)

/** The first verdict about a client's port that is not `allow`. */
function stopped(verdicts: Verdict[], port: number): string | undefined {
  const one = verdicts.find(
    ({ sourcePort, destinationPort, action }) =>
      (sourcePort === port || destinationPort === port) && action !== 'allow',
  )
  return one && `${one.action}: ${one.detail ?? one.rule}`
}

const outcome = (between: Gateway, { port }: Played) =>
  stopped(between.verdicts(), port) ?? (between.drops().join() || 'allow')

describe.skipIf(missing !== '')(title('evasions'), () => {
  let stage: Stage
  let scenes: string[]
  beforeAll(async () => {
    stage = new Stage()
    scenes = (await stage.hear()).scenes
  })
  afterAll(() => stage.close())

  const isSecret = (request: string) => /^\w+ (?:\/http:\/server)?\/secret$/.test(request)

  it('are all played', () => {
    expect([...Object.keys({ ...EVASIONS, ...ELSEWHERE }), ...ALLOWED].sort()).toEqual(scenes.sort())
  })

  it.each(Object.keys(EVASIONS))('%s reaches a server on Linux', async name => {
    expect((await stage.play(name)).read.some(isSecret)).toBe(true)
  })

  it.each(Object.entries({ ...EVASIONS, ...ELSEWHERE }))('%s is stopped', async (name, [policy, signatures]) => {
    for (const [between, expected] of [
      [withPolicy(), policy],
      [withSignatures(), signatures],
    ] as const)
      try {
        const played = await stage.play(name, between)
        expect(outcome(between, played)).toEqual(expected)
        expect(played.read.filter(isSecret)).toEqual([])
      } finally {
        between.close()
      }
  })

  it('are stopped in a replay as they were live', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'detour-evasion-'))
    const [input, log] = [join(folder, 'in.pcap'), join(folder, 'log')]
    const came: Came[] = []
    const live: [port: number, stopped: string | undefined][] = []
    const drops = new Set<string>()
    for (const name of scenes) {
      const between = withPolicy()
      const { port } = await stage.play(name, between)
      live.push([port, stopped(between.verdicts(), port)])
      for (const reason of between.drops()) drops.add(reason)
      // So long after the one before that all its flows have been forgotten.
      const begin = (came.at(-1)?.timeMs ?? 0) + HOUR_MS
      came.push(...between.came.map(({ frame, timeMs }) => ({ frame, timeMs: begin + timeMs })))
      between.close()
    }
    try {
      writeFileSync(
        input,
        pcapOf(
          came.map(({ frame }) => frame),
          came.map(({ timeMs }) => timeMs),
        ),
      )
      const options = { tunnel: tunnelOf({}), policy: POLICY, live: false, rate: 'max', workers: 1 } as const
      const report = await runReplay({ input, log, ...options })
      const lines = readFileSync(log, 'utf8').trimEnd().split('\n')
      const verdicts: Verdict[] = lines.map(line => JSON.parse(line))
      expect(live.map(([port]) => [port, stopped(verdicts, port)])).toEqual(live)
      const inspect = (asData(report) as ReportData).gateway.find(one => one.stage === 'inspect')!
      expect(new Set(inspect.drops.map(({ reason }) => reason))).toEqual(drops)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })

  it.each(ALLOWED)('%s', async name => {
    const direct = await stage.play(name)
    for (const between of [withPolicy(), withSignatures()])
      try {
        const { read, bytes } = await stage.play(name, between)
        expect({ read, bytes }).toEqual({ read: direct.read, bytes: direct.bytes })
        expect(between.drops()).toEqual([])
      } finally {
        between.close()
      }
  })
})
