// The pages for machines, as Prometheus' own tool and plain HTTP clients see them.

import { spawnSync } from 'node:child_process'
import { connect } from 'node:net'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { LogFields } from '../../src/control/log.ts'
import { DROP } from '../../src/drop.ts'
import { type MetricsServer, startMetrics } from '../../src/node/metrics.ts'
import { type Fake, fakeSource } from '../control/fake.ts'

const hasPromtool = spawnSync('promtool', ['--version']).status === 0

let fake: Fake
let server: MetricsServer
let url: string
let ready = true
let ageMs = 7
const logged: [string, LogFields | undefined][] = []

beforeAll(async () => {
  fake = fakeSource()
  const attachments = fake.source.attachments
  Object.assign(fake.source, {
    attachments: async () =>
      (await attachments()).map(row => ({ ...row, redirected: 17, pod: 'evil"\n}\\ns/ünïcode\u2028' })),
    workers: () => [{ worker: 'forward-0', flows: 3, capacity: 1000, created: 10, ageMs }],
    endpoints: () => [
      {
        ...{ name: 'gw-a', address: '192.0.2.2', weight: 3, state: 'draining', sinceMs: 0, flows: 2 },
        ...{ probesSent: 9, probesAnswered: 8, latency: { bounds: [0.5, 1, 250], counts: [1, 2, 0, 4], sumMs: 1503 } },
      },
      {
        ...{ name: 'gw-b', address: '2001:db8::2', weight: 1, state: 'down', sinceMs: 0, flows: 0 },
        ...{ probesSent: 9, probesAnswered: 0 },
      },
    ],
  })
  server = await startMetrics(fake.source, {
    listen: '127.0.0.1:0',
    heartbeatLimitMs: 200,
    ready: () => ({ ok: ready, text: ready ? 'ready' : 'no endpoint answers' }),
    log: (line, fields) => logged.push([line, fields]),
  })
  url = `http://${server.address}`
})

afterAll(() => server.close())

const scrape = async () => (await fetch(`${url}/metrics`)).text()

/** The value behind a name and some of its labels. */
function value(page: string, name: string, ...labels: string[]): number {
  const lines = page.split('\n').filter(line => line.startsWith(name) && /[ {]/.test(line[name.length]))
  const matching = lines.filter(line => labels.every(label => line.includes(label)))
  expect(matching, `${name} ${labels}`).toHaveLength(1)
  return Number(matching[0].split(' ').at(-1))
}

describe('/metrics', () => {
  test.skipIf(!hasPromtool)('promtool finds nothing to complain of (needs prometheus)', async () => {
    const { status, stdout, stderr } = spawnSync('promtool', ['check', 'metrics'], {
      input: await scrape(),
      encoding: 'utf8',
    })
    expect([status, stdout, stderr]).toEqual([0, '', ''])
  })

  test('counters of stages, drops by reason, what passed and why', async () => {
    const [decide] = fake.counters.stages
    decide.passed(5, 2)
    fake.counters.publish()
    const page = await scrape()
    expect(value(page, 'detour_stage_packets_total', 'stage="decide"', 'direction="in"')).toBe(1234567)
    expect(value(page, 'detour_stage_bytes_total', 'stage="encap"', 'direction="out"')).toBe(160_000_000)
    expect(value(page, 'detour_dropped_packets_total', 'stage="decide"', 'reason="policy"')).toBe(4)
    expect(value(page, 'detour_bypassed_packets_total', 'reason="rule"')).toBe(3)
    expect(value(page, 'detour_bypassed_packets_total', 'reason="endpoint-down"')).toBe(2)
    decide.dropped(DROP.FLOW_TABLE_FULL, 6)
    fake.counters.publish()
    const next = await scrape()
    expect(value(next, 'detour_flows_refused_total')).toBe(6)
    expect(value(next, 'detour_stage_packets_total', 'stage="decide"', 'direction="in"')).toBe(1234567)
  })

  test('flows, workers, pods, endpoints, alarms, the process', async () => {
    const page = await scrape()
    expect(value(page, 'detour_flows', 'forward-0')).toBe(3)
    expect(value(page, 'detour_flows_ended_total')).toBe(7)
    expect(value(page, 'detour_worker_heartbeat_age_seconds')).toBe(0.007)
    expect(value(page, 'detour_attachment_heartbeat_age_seconds', 'attachment="client"')).toBe(0.012)
    expect(value(page, 'detour_attachment_fail_mode_packets_total', 'action="dropped"')).toBe(9)
    expect(value(page, 'detour_attachment_missed_packets_total')).toBe(4321)
    expect(value(page, 'detour_endpoint_up', 'endpoint="gw-a"')).toBe(1)
    expect(value(page, 'detour_endpoint_up', 'endpoint="gw-b"')).toBe(0)
    expect(value(page, 'detour_endpoint_draining', 'endpoint="gw-a"')).toBe(1)
    expect(value(page, 'detour_alarm_raised', 'alarm="uplink eth0"')).toBe(1)
    expect(value(page, 'detour_alarms_total', 'alarm="uplink eth0"')).toBe(3)
    expect(value(page, 'process_resident_memory_bytes')).toBeGreaterThan(1e7)
  })

  test('the histogram of an endpoint is cumulative, in seconds', async () => {
    const page = await scrape()
    const bucket = (le: string) => value(page, 'detour_endpoint_latency_seconds_bucket', 'gw-a', `le="${le}"`)
    expect(['0.0005', '0.001', '0.25', '+Inf'].map(bucket)).toEqual([1, 3, 3, 7])
    expect(value(page, 'detour_endpoint_latency_seconds_count', 'gw-a')).toBe(7)
    expect(value(page, 'detour_endpoint_latency_seconds_sum', 'gw-a')).toBe(1.503)
    expect(page).not.toMatch(/latency.*gw-b/)
  })

  test('a name from elsewhere cannot begin a line of its own', async () => {
    const page = await scrape()
    for (const line of page.split('\n')) expect(line).toMatch(/^($|# |detour_|process_)/)
    expect(page).toContain(String.raw`pod="evil\"\n}\\ns/ünïcode`)
  })
})

describe('health', () => {
  test('/healthz: live while every worker is heard of', async () => {
    const live = await fetch(`${url}/healthz`)
    expect([live.status, await live.text()]).toEqual([200, 'ok, 1 live workers\n'])
    ageMs = 201
    const dead = await fetch(`${url}/healthz`)
    expect([dead.status, await dead.text()]).toEqual([503, 'silent for more than 200 ms: forward-0 for 201 ms\n'])
    ageMs = 7
  })

  test('/readyz says why not', async () => {
    expect((await fetch(`${url}/readyz`)).status).toBe(200)
    ready = false
    const not = await fetch(`${url}/readyz`)
    expect([not.status, await not.text()]).toEqual([503, 'no endpoint answers\n'])
    ready = true
  })
})

describe('whatever a client does', () => {
  test('only GET and HEAD, only what is there', async () => {
    const head = await fetch(`${url}/metrics`, { method: 'HEAD' })
    expect([head.status, await head.text()]).toEqual([200, ''])
    expect(Number(head.headers.get('content-length'))).toBeGreaterThan(1000)
    const post = await fetch(`${url}/metrics`, { method: 'POST', body: 'x'.repeat(100_000) })
    expect([post.status, post.headers.get('allow')]).toEqual([405, 'GET, HEAD'])
    for (const path of ['/', '/metrics/', '/../etc/passwd', '/constructor', '/__proto__'])
      expect((await fetch(url + path)).status, path).toBe(404)
    expect((await fetch(`${url}/metrics?format=x`)).status).toBe(200)
  })

  test('more connections than it bears are closed, and it goes on', async () => {
    const port = Number(server.address.split(':')[1])
    const sockets = Array.from({ length: 60 }, () => connect(port, '127.0.0.1'))
    const closed = sockets.map(
      socket => new Promise<boolean>(resolve => socket.on('error', () => {}).on('close', () => resolve(true))),
    )
    await Promise.any(closed)
    for (const socket of sockets) socket.destroy()
    await Promise.all(closed)
    // The server's ends of them may be there still.
    const status = () => fetch(`${url}/healthz`).then(answer => answer.status, String)
    await expect.poll(status).toBe(200)
  })

  test('garbage and headers without end are refused', async () => {
    const port = Number(server.address.split(':')[1])
    for (const bytes of ['\x16\x03\x01\0\xff\r\n\r\n', `GET / HTTP/1.1\r\nX: ${'y'.repeat(20_000)}\r\n\r\n`]) {
      const answer = await new Promise<string>(resolve => {
        let text = ''
        const socket = connect(port, '127.0.0.1', () => socket.write(bytes))
        socket.on('data', chunk => (text += chunk)).on('error', () => {})
        socket.on('close', () => resolve(text))
      })
      expect(answer).toMatch(/^HTTP\/1\.1 4\d\d /)
    }
    expect((await fetch(`${url}/healthz`)).status).toBe(200)
  })

  test('the log warns where others can reach it', async () => {
    expect(logged).toHaveLength(1)
    const open = await startMetrics(fake.source, {
      ...{ listen: '0.0.0.0:0', heartbeatLimitMs: 200, ready: () => ({ ok: true, text: '' }) },
      log: (line, fields) => logged.push([line, fields]),
    })
    await open.close()
    expect(logged.at(-1)).toEqual([
      expect.stringContaining('is no loopback address'),
      expect.objectContaining({ level: 'warn' }),
    ])
  })

  test('an address that is taken is an error that says what to do', async () => {
    const options = { heartbeatLimitMs: 200, ready: () => ({ ok: true, text: '' }), log: () => {} }
    await expect(startMetrics(fake.source, { ...options, listen: server.address })).rejects.toThrow(
      /metrics: cannot listen at 127\.0\.0\.1:\d+ \(.*EADDRINUSE.*\); choose another address/,
    )
  })
})
