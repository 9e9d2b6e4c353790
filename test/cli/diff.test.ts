// detour diff as people run it: what a new policy changes for a capture, and whether Suricata finds the same as we do.

import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { fixture, missing, title } from '../device/captures.ts'
import { detour } from './run.ts'

const HTTP = fixture('http.pcap')
const folder = mkdtempSync(join(tmpdir(), 'detour-diff-'))
afterAll(() => rmSync(folder, { recursive: true }))

const file = (name: string, text: string) => {
  const path = join(folder, name)
  writeFileSync(path, text)
  return path
}

/** The verdict log of the capture under a policy. */
async function verdicts(name: string, policy: string): Promise<string> {
  const log = join(folder, `${name}.jsonl`)
  const { status, stderr } = await detour([
    'replay',
    '-r',
    HTTP,
    '--policy',
    file(`${name}.yaml`, policy),
    '--log',
    log,
  ])
  expect([status, stderr]).toEqual([0, ''])
  return log
}

const OPEN = 'default: allow\n'
const STRICT = `default: allow
rules: [{ name: no-web, protocol: tcp, ports: [80], action: reset }]
`

describe.skipIf(missing)(title('what a policy would change'), () => {
  test('is told for people, for programs and by the exit status', async () => {
    const [open, strict] = [await verdicts('open', OPEN), await verdicts('strict', STRICT)]
    const tuples = (await detour(['diff', open, strict, '--json'])).stdout
    const data = JSON.parse(tuples)
    expect(data.differences.length).toBeGreaterThan(0)
    // tshark says which connections there are.
    const args = [
      '-r',
      HTTP,
      '-Y',
      'tcp.dstport==80 && tcp.flags.syn==1',
      '-T',
      'fields',
      '-e',
      'ip.src',
      '-e',
      'tcp.srcport',
    ]
    const syns = spawnSync('tshark', args, { encoding: 'utf8' }).stdout.trim().split('\n')
    const changed = data.differences.filter(({ what }: { what: string }) => what === 'changed')
    expect(changed.map(({ before }: { before: { source: string } }) => before.source).sort()).toEqual(
      syns.map(line => line.replace('\t', ':')).sort(),
    )
    const { status, stdout } = await detour(['diff', open, strict])
    expect(status).toBe(1)
    expect(stdout).toMatch(/^WHAT +PACKET +PROTOCOL +SOURCE +DESTINATION +BEFORE +AFTER\n/)
    expect(stdout).toMatch(/^changed .* allow \(default\) +reset \(no-web\)$/m)
    expect(stdout).toContain(`${changed.length} changed`)
  })

  test('is nothing for the same policy', async () => {
    const [open, again] = [await verdicts('one', OPEN), await verdicts('other', OPEN)]
    const { status, stdout, stderr } = await detour(['diff', open, again])
    expect([status, stderr]).toEqual([0, ''])
    expect(stdout).toMatch(/^\d+ the same, 0 changed, 0 appeared, 0 vanished\n$/)
  })
})

const hasSuricata = spawnSync('suricata', ['-V']).status === 0

describe.skipIf(!hasSuricata)(`beside Suricata${hasSuricata ? '' : ' (skipped: needs suricata)'}`, () => {
  test('both find the same in a capture', async () => {
    const rules = file(
      'own.rules',
      `alert http any any -> any any (msg:"a form"; flow:established,to_server; http.method; content:"POST"; sid:1; rev:1;)
alert http any any -> any any (msg:"twice"; flow:established,to_server; http.uri; content:"?again"; sid:2; rev:1;)
alert http any any -> any any (msg:"a secret"; flow:established,to_server; http.uri; content:"secret"; sid:3; rev:1;)
`,
    )
    const theirs = join(folder, 'theirs')
    mkdirSync(theirs)
    const settings = file(
      'suricata.yaml',
      `%YAML 1.1
---
vars: { address-groups: { HOME_NET: any, EXTERNAL_NET: any } }
outputs: [{ eve-log: { enabled: yes, filetype: regular, filename: eve.json, types: [{ alert: {} }, stats] } }]
app-layer: { protocols: { http: { enabled: yes } } }
unix-command: { enabled: no }
`,
    )
    const args = ['-c', settings, '-r', HTTP, '-S', rules, '-l', theirs, '-k', 'none', '--runmode', 'single']
    const suricata = spawnSync('suricata', args, { encoding: 'utf8' })
    expect(suricata.status, suricata.stderr).toBe(0)
    const ours = join(folder, 'ours.json')
    expect((await detour(['replay', '-r', HTTP, '--rules', rules, '--eve', ours])).status).toBe(0)
    const { status, stdout, stderr } = await detour(['diff', join(theirs, 'eve.json'), ours])
    expect(stdout + stderr).toBe('3 the same, 0 changed, 0 appeared, 0 vanished\n')
    expect(status).toBe(0)
  })
})

test.each([
  [['/nonexistent/a.jsonl'], /^detour: \/nonexistent\/a.jsonl: cannot be read/],
  [[file('bad.jsonl', '{}\n')], /^detour: .*bad.jsonl:1: neither a verdict of a gateway/],
])('%j is refused', async (paths, message) => {
  const { status, stderr } = await detour(['diff', ...paths, ...paths])
  expect(status).toBe(1)
  expect(stderr).toMatch(message)
})
