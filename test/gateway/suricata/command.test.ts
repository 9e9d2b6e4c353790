// `--rules` and `--eve` as people give them: a live gateway that is sent a datagram, and what is wrong with flags.

import type { ChildProcess } from 'node:child_process'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, it } from 'vitest'
import { detour, start } from '../../cli/run.ts'
import { freePort } from '../ports.ts'

let folder: string
const children: ChildProcess[] = []
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'detour-rules-'))
})
afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  rmSync(folder, { recursive: true })
})

/** A GENEVE packet that carries a datagram of IPv4, from its own header on. */
function tunnelled(payload: string): Buffer {
  const data = Buffer.from(payload)
  const geneve = Buffer.from('0000655800000100', 'hex')
  const ethernet = Buffer.from('0200000000020200000000010800', 'hex')
  const ip = Buffer.from('450000000000000040110000c6336401cb007101', 'hex')
  ip.writeUInt16BE(28 + data.length, 2)
  let sum = 0
  for (let i = 0; i < 20; i += 2) sum += ip.readUInt16BE(i)
  ip.writeUInt16BE(~((sum & 0xffff) + (sum >>> 16)) & 0xffff, 10)
  const udp = Buffer.from('9c40232800000000', 'hex')
  udp.writeUInt16BE(8 + data.length, 4)
  return Buffer.concat([geneve, ethernet, ip, udp, data])
}

describe('detour gateway --rules', () => {
  it('alerts as Suricata does, drops what it shall, and says what it left out', async () => {
    const [rules, vars, eve] = ['a.rules', 'vars.yaml', 'eve.json'].map(name => join(folder, name))
    writeFileSync(vars, 'vars:\n  address-groups: { US: "203.0.113.0/24" }\n')
    writeFileSync(
      rules,
      [
        'alert udp any any -> $US $THERE (msg:"seen"; content:"ATTACK"; sid:1; rev:2;)',
        'drop udp any any -> any any (msg:"gone"; content:"DROPME"; sid:2;)',
        'alert udp any any -> any any (dsize:>3; sid:3;)',
      ].join('\n'),
    )
    const port = await freePort('127.0.0.1')
    const flags = ['--rules', rules, '--rule-vars', vars, '--rule-var', 'THERE=9000', '--eve', eve]
    const child = start([
      'gateway',
      '--listen',
      `127.0.0.1:${port}`,
      '--control',
      join(folder, 'control'),
      '--json',
      ...flags,
    ])
    children.push(child)
    const closed = once(child, 'close')
    let errors = ''
    child.stderr.on('data', data => (errors += data))
    await once(child.stdout, 'data')
    const socket = createSocket('udp4')
    const back = once(socket, 'message')
    socket.send(tunnelled('DROPME'), port, '127.0.0.1')
    socket.send(tunnelled('an ATTACK'), port, '127.0.0.1')
    const other = tunnelled('an ATTACK')
    // A flow of its own, which the first one's verdict does not meet.
    other.writeUInt16BE(0x9c41, 42)
    socket.send(other, port, '127.0.0.1')
    expect((await back)[0].subarray(-9).toString()).toBe('an ATTACK')
    socket.close()
    child.kill('SIGTERM')
    expect((await closed)[0]).toBe(0)
    const events = readFileSync(eve, 'utf8')
      .trimEnd()
      .split('\n')
      .map(line => JSON.parse(line))
    expect(events).toMatchObject([
      { event_type: 'alert', src_port: 40_000, alert: { action: 'blocked', signature_id: 2, signature: 'gone' } },
      {
        ...{ src_ip: '198.51.100.1', src_port: 40_001, dest_ip: '203.0.113.1', dest_port: 9000, proto: 'UDP' },
        alert: { action: 'allowed', signature_id: 1, rev: 2, signature: 'seen' },
      },
    ])
    expect(errors).toContain(`${rules}:3: left out: keyword dsize is not supported`)
  })

  it('refuses what it cannot use', async () => {
    const rules = join(folder, 'a.rules')
    writeFileSync(rules, 'alert udp any any -> any any (dsize:>3; sid:3;)\n')
    const run = (...flags: string[]) => detour(['replay', '-r', 'none.pcap', ...flags])
    expect(await run('--rules', rules, '--unsupported', 'refuse')).toMatchObject({
      status: 1,
      stderr: expect.stringContaining(`${rules}:1: keyword dsize is not supported`),
    })
    expect(await run('--eve', 'x')).toMatchObject({ status: 2, stderr: expect.stringContaining('--rules') })
    expect(await run('--rules', rules, '--rule-var', 'x')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('NAME=VALUE'),
    })
    expect(await run('--rules', join(folder, 'none'))).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('cannot be read'),
    })
  })
})
