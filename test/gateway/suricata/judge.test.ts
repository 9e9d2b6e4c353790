// What rules do to flows: drop, reject, and beside policies; and that memory has bounds.

import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { tunnelOf } from '../../../src/cli/options.ts'
import { asData } from '../../../src/cli/replay.ts'
import type { Policy } from '../../../src/gateway/judge.ts'
import { ALLOW_ALL, parseRules as parsePolicy } from '../../../src/gateway/rules.ts'
import { parseRules } from '../../../src/gateway/suricata/parse.ts'
import { PIECE, TAIL, Window, WindowMemory } from '../../../src/gateway/suricata/window.ts'
import { runReplay } from '../../../src/lab/replay.ts'
import { dropsOf, type ReportData } from '../../lab/accounts.ts'

const PYTHON = '/usr/bin/python3'
const reason = spawnSync(PYTHON, ['-c', 'import scapy']).status !== 0 ? ' (skipped: needs python3-scapy)' : ''

const hex = (text: string) => Buffer.from(text, 'latin1').toString('hex')
const get = (path: string) => `GET ${path} HTTP/1.1\r\nHost: server\r\n\r\n`

describe.skipIf(reason !== '')(`flows that rules are about${reason}`, () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-signatures-'))
  })
  afterAll(() => rmSync(folder, { recursive: true }))

  async function through(texts: string[], rules: string, policy: Policy = ALLOW_ALL) {
    const [input, log, eve] = ['in.pcap', 'verdicts.jsonl', 'eve.json'].map(name => join(folder, name))
    for (const file of [log, eve]) rmSync(file, { force: true })
    const flows = texts.map(text => ({
      said: [
        [0, 0, hex(text)],
        [0, text.length, hex('GET')],
      ],
    }))
    const script = fileURLToPath(new URL('scene.py', import.meta.url))
    execFileSync(PYTHON, [script, JSON.stringify(flows), input], { stdio: ['ignore', 'ignore', 'inherit'] })
    const { signatures } = parseRules([{ file: 'rules', text: rules }], {}, 'refuse')
    const options = {
      input,
      log,
      eve,
      tunnel: tunnelOf({}),
      policy,
      signatures,
      live: false,
      rate: 'max' as const,
      workers: 1,
    }
    const report = asData(await runReplay(options)) as ReportData
    const lines = (file: string) =>
      readFileSync(file, 'utf8')
        .split('\n')
        .slice(0, -1)
        .map(line => JSON.parse(line))
    const last = texts.map((_, i) => lines(log).findLast(one => one.sourcePort === 20_000 + i))
    return {
      report,
      last,
      alerts: lines(eve).map(({ src_port, alert }) => [src_port - 20_000, alert.signature_id, alert.action]),
    }
  }

  it('are dropped, reset or told of, and the rest goes on', async () => {
    const { last, alerts, report } = await through(
      ['a DROPME', 'a REJECTME', 'an ALERT', 'nothing'],
      'drop tcp any any -> any any (content:"DROPME"; msg:"no"; sid:1;)\nreject tcp any any -> any any (content:"REJECTME"; sid:2;)\nalert tcp any any -> any any (content:"ALERT"; sid:3;)',
    )
    expect(last.map(({ action }) => action)).toEqual(['drop', 'reset', 'allow', 'allow'])
    expect(last[0].rule).toBe('signature 1:1:0 no')
    expect(alerts).toEqual([
      [0, 1, 'blocked'],
      [1, 2, 'blocked'],
      [2, 3, 'allowed'],
    ])
    const drops = dropsOf(report.gateway)
    expect(drops['inspect policy']).toBeGreaterThanOrEqual(2)
    expect(drops['inspect reset']).toBeGreaterThanOrEqual(1)
  })

  it('are told of before they are dropped, once', async () => {
    const rules =
      'alert tcp any any -> any any (content:"A"; sid:1;)\ndrop tcp any any -> any any (content:"B"; sid:2;)'
    expect((await through(['AABBA'], rules)).alerts).toEqual([
      [0, 2, 'blocked'],
      [0, 1, 'allowed'],
    ])
  })

  it('fare as the stricter of policy and rule says', async () => {
    const pod = (name: string, podIP: string) => ({
      kind: 'Pod',
      metadata: { name, namespace: 'shop', labels: { app: name } },
      status: { podIP },
    })
    const spec = {
      endpointSelector: { matchLabels: { app: 'server' } },
      ingress: [{ toPorts: [{ ports: [{ port: '80' }], rules: { http: [{ path: '/public.*' }] } }] }],
    }
    const value = {
      apiVersion: 'cilium.io/v2',
      kind: 'CiliumNetworkPolicy',
      metadata: { name: 'p', namespace: 'shop' },
      spec,
    }
    const policy: Policy = {
      policies: [{ value, where: 'p' }],
      inventory: [
        { value: { kind: 'List', items: [pod('client', '10.0.0.1'), pod('server', '10.0.0.2')] }, where: 'i' },
      ],
      denial: 'reset',
    }
    const { last } = await through(
      [get('/public'), get('/secret'), get('/secret/DROPME'), get('/public/DROPME'), get('/friend')],
      'drop tcp any any -> any any (http.uri; content:"DROPME"; sid:1;)\npass tcp any any -> any any (http.uri; content:"friend"; sid:2;)',
      policy,
    )
    expect(last.map(({ action }) => action)).toEqual(['allow', 'reset', 'drop', 'drop', 'reset'])
  })

  it('go on unseen where memory runs out, which is told', async () => {
    const policy = { policies: [], inventory: [], denial: 'reset', streams: { flow: 4096, total: 4096 } } as const
    const rules = 'alert tcp any any -> any any (content:"ATTACK"; sid:1;)'
    const { report, alerts } = await through(['an ATTACK', 'an ATTACK', 'an ATTACK'], rules, {
      ...policy,
      policies: [],
      inventory: [],
    })
    expect(alerts).toEqual([[0, 1, 'allowed']])
    expect(report).toMatchObject({
      notReturned: 0,
      faults: ['signatures: 2 flows were not inspected to their end, for lack of memory'],
    })
  })

  it('are searched on where a rule file has found what it allows', async () => {
    const policy = parsePolicy(
      'default: allow\nrules: [{ name: fine, protocol: tcp, signature: { text: FINE }, action: allow }]',
      'p',
    )
    const rules = 'drop tcp any any -> any any (content:"FINEGET"; sid:1;)'
    expect((await through(['x FINE'], rules, policy)).last[0].action).toBe('drop')
  })
})

describe('the window over a stream', () => {
  it('keeps what came lately, and no more', () => {
    const memory = new WindowMemory(1 << 20)
    const window = new Window(memory)
    const all = Uint8Array.from({ length: 100_000 }, (_, i) => (i * 7919) >>> 5)
    for (let at = 0, step = 1; at < all.length; at += step, step = (step * 31 + 7) % PIECE || 1) {
      step = Math.min(step, all.length - at)
      const place = window.append(all, at, at + step, at)
      expect(window.base + place).toBe(at)
      expect(window.bytes.subarray(0, window.end)).toEqual(all.subarray(window.base, at + step))
      expect(place).toBeGreaterThanOrEqual(Math.min(at, TAIL))
    }
    expect(memory.used).toBe(TAIL + PIECE)
    window.release()
    expect(memory.used).toBe(0)
  })

  it('begins anew behind a gap', () => {
    const window = new Window(new WindowMemory(1 << 20))
    const bytes = new Uint8Array(100).fill(1)
    window.append(bytes, 0, 100, 0)
    expect(window.append(bytes, 0, 100, 500)).toBe(0)
    expect([window.base, window.end]).toEqual([500, 100])
    expect(window.append(bytes, 0, 100, 600)).toBe(100)
  })

  it('is of one segment where memory has run out', () => {
    const memory = new WindowMemory(1024)
    const [first, second] = [new Window(memory), new Window(memory)]
    const bytes = new Uint8Array(1000).fill(1)
    expect(first.append(bytes, 0, 1000, 0)).toBe(0)
    expect(second.append(bytes, 0, 1000, 0)).toBe(0)
    expect(second.append(bytes, 0, 500, 1000)).toBe(0)
    expect([second.base, second.end]).toEqual([1000, 500])
    expect(memory.used).toBe(1024)
    second.release()
    expect(memory.used).toBe(1024)
  })
})
