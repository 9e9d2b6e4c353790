// The whole laboratory as people run it: every step must do what it should, and nothing may stay behind.

import { execFileSync, spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { packageRoot } from '../../src/control/package.ts'
import type { LabReport } from '../../src/lab/report.ts'
import { leftOver, whyNoLab } from '../../src/lab/topology.ts'
import { said } from '../processes.ts'

const MAIN = new URL('dist/src/cli/main.js', packageRoot).pathname
const reason = whyNoLab() ?? (existsSync(MAIN) ? null : 'dist/ is missing: run "npm run build"')
const LIMIT_MS = 400_000

interface Outcome {
  ok: boolean
  page: string
  steps: { name: string; ok: boolean | null; observed: string }[]
}

function detour(
  args: string[],
  user: { uid?: number; gid?: number } = {},
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [MAIN, ...args], user)
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', text => {
    stdout += text
  })
  child.stderr.on('data', text => {
    stderr += text
  })
  return new Promise(resolve => child.once('close', status => resolve({ status, stdout, stderr })))
}

describe.skipIf(reason !== null)(`lab run${reason === null ? '' : ` (skipped: ${reason})`}`, () => {
  let folder: string
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'detour-lab-'))
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  it.each([
    ['geneve', 'open', []],
    ['vxlan', 'closed', ['--ipv6']],
  ])(
    'does every step with %s, fail-%s %j',
    async (profile, fail, more) => {
      const run = `r${process.pid % 10_000}${profile[0]}`
      const report = join(folder, profile)
      const options = [
        '--profile',
        profile,
        '--fail',
        fail,
        '--run',
        run,
        '--report',
        report,
        '--seconds',
        '1',
        '--json',
      ]
      const { status, stdout, stderr } = await detour(['lab', ...options, ...more])
      const outcome = JSON.parse(stdout) as Outcome
      const wrong = outcome.steps.filter(step => step.ok !== true)
      expect(wrong, stderr).toEqual([])
      expect(outcome.ok).toBe(true)
      expect(status).toBe(0)
      expect(outcome.steps).toHaveLength(10)
      expect(outcome.steps.map(step => step.observed).join('\n')).toContain('rule no-secrets (reset) in the log')
      expect(leftOver(run)).toEqual([])

      // The page tells the same, and tshark finds the tunnel in the capture, with the request inside.
      expect(readFileSync(outcome.page, 'utf8')).toContain('All 10 steps did what they should')
      expect(statSync(join(report, 'underlay.pcapng')).size).toBeLessThan(6 << 20)
      const filter = ['-Y', `${profile} && http.request.uri contains "allowed"`]
      const inside = execFileSync('tshark', ['-r', join(report, 'underlay.pcapng'), ...filter], { encoding: 'utf8' })
      expect(inside).toContain('GET /allowed')
    },
    LIMIT_MS,
  )

  it.each([
    ['tcx', 'uso'],
    ['clsact', 'plain'],
    ['tcx', 'udp-socket'],
  ])(
    'does every step on the rungs %s and %s, which are lower than what this kernel can do',
    async (attach, offload) => {
      const run = `g${process.pid % 10_000}${offload[0]}`
      const report = join(folder, run)
      const options = ['--attach', attach, '--offload', offload, '--run', run, '--report', report, '--seconds', '1']
      const { status, stdout, stderr } = await detour(['lab', ...options, '--json'])
      const { steps } = JSON.parse(stdout) as Outcome
      expect(
        steps.filter(step => step.ok !== true),
        stderr,
      ).toEqual([])
      expect(status).toBe(0)
      const { faces } = JSON.parse(readFileSync(join(report, 'report.json'), 'utf8')) as LabReport
      expect(faces.map(({ face, underlay }) => [face, underlay[0].rung])).toEqual([
        ['node', offload],
        ['gateway', offload],
      ])
      expect(faces[0].attachments.map(row => row.attachRung)).toEqual([attach, attach])
      expect(leftOver(run)).toEqual([])
    },
    LIMIT_MS,
  )

  it(
    'leaves nothing behind when it is interrupted',
    async () => {
      const run = `i${process.pid % 10_000}`
      const child = spawn(process.execPath, [
        MAIN,
        'lab',
        '--run',
        run,
        '--report',
        join(folder, 'interrupted'),
        '--seconds',
        '30',
      ])
      const ended = new Promise(resolve => child.once('close', status => resolve(status)))
      // The baseline's bulk transfer would go on for 30 s.
      await said(child.stderr, 'bulk transfer')
      expect(leftOver(run)).not.toEqual([])
      child.kill('SIGINT')
      expect(await ended).toBe(130)
      expect(leftOver(run)).toEqual([])
    },
    LIMIT_MS,
  )

  it(
    'leaves nothing behind when Ctrl-C is pressed again while it cleans up',
    async () => {
      const run = `j${process.pid % 10_000}`
      const options = ['--run', run, '--report', join(folder, 'impatient'), '--seconds', '30']
      for (let again = false; !again; ) {
        // As at a terminal: the signal goes to every process of a group, tools that clean up included.
        const child = spawn(process.execPath, [MAIN, 'lab', ...options], { detached: true })
        const ended = new Promise(resolve => child.once('close', (status, signal) => resolve(signal ?? status)))
        let text = ''
        child.stderr.on('data', data => (text += data))
        await said(child.stderr, 'GET /secret')
        const before = leftOver(run).length
        process.kill(-child.pid!, 'SIGINT')
        while (leftOver(run).length === before) await new Promise(setImmediate)
        try {
          again = process.kill(-child.pid!, 'SIGINT')
        } catch {
          // It had cleaned up before this process was let on.
        }
        expect(await ended, text).toBe(130)
        expect(leftOver(run)).toEqual([])
      }
    },
    LIMIT_MS,
  )

  it(
    'keeps everything running when asked to, until it is told to clean up',
    async () => {
      const run = `k${process.pid % 10_000}`
      const report = join(folder, 'kept')
      const kept = await detour(['lab', '--run', run, '--report', report, '--fail', 'open', '--seconds', '1', '--keep'])
      expect(kept.status, kept.stdout).toBe(0)
      const enter = ['netns', 'exec', `detour-lab-${run}-client`]
      const client = new URL('dist/src/lab/programs/http-client.js', packageRoot).pathname
      const fetch = (page: string) =>
        JSON.parse(
          execFileSync('ip', [...enter, process.execPath, client, `http://10.244.0.3:8080/${page}`, '20000'], {
            encoding: 'utf8',
          }),
        )
      expect(fetch('allowed')).toMatchObject({ status: 200 })
      expect(fetch('secret')).toMatchObject({ status: null })
      expect((await detour(['lab', '--clean', '--run', `${run}x`])).stdout).toBe('Nothing was left.\n')
      expect(leftOver(run)).not.toEqual([])
      expect((await detour(['lab', '--clean', '--run', run])).stdout).toBe(`Removed: ${run}.\n`)
      expect(leftOver(run)).toEqual([])
    },
    LIMIT_MS,
  )

  it('refuses a profile that it does not know, and says which there are', async () => {
    const { status, stderr } = await detour(['lab', '--profile', 'gre'])
    expect(status).toBe(2)
    expect(stderr).toContain('geneve, vxlan')
  })
})

const nobody = process.getuid?.() === 0 ? { uid: 65_534, gid: 65_534 } : {}
const unbuilt = existsSync(MAIN) ? '' : ' (skipped: dist/ is missing: run "npm run build")'

describe.skipIf(unbuilt !== '')(`lab without root${unbuilt}`, () => {
  it('says so and replays a capture, of which the gateway stops a request', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'detour-lab-'))
    chmodSync(folder, 0o777)
    try {
      const { status, stdout, stderr } = await detour(['lab', '--report', join(folder, 'report')], nobody)
      expect(status, stderr).toBe(0)
      expect(stdout).toContain('need root')
      expect(stdout).toContain('"rule":"block-secret","action":"drop"')
      expect(stdout).toMatch(/returned unchanged +[1-9]/)
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
