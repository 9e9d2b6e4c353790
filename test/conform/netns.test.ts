// Our gateway on an interface, behind every profile: all that a real link can show, jumbo frames and both kept ports included.

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { createNamespace, deleteNamespace, ipBatch } from '../../src/os/netns.ts'
import { start } from '../cli/run.ts'
import { missing, title } from '../netns/support.ts'

const [CLIENT, ENDPOINT] = ['dtconf-client', 'dtconf-end']
const directory = mkdtempSync(join(tmpdir(), 'detour-conform-'))
const LIMIT_MS = 240_000

const PROFILES = ['geneve', 'vxlan', 'aws-gwlb', 'gcp-nsi', 'azure-gwlb', 'pan-cni'] as const
const RUNS = PROFILES.flatMap(profile =>
  ['10.97.0.2', 'fd97::2'].filter(to => profile !== 'aws-gwlb' || to.includes('.')).map(to => [profile, to] as const),
)

/** Cases of flows that are moved, by what each profile's sender does. */
const MOVED = { geneve: 6, vxlan: 6, 'aws-gwlb': 6, 'gcp-nsi': 6, 'azure-gwlb': 2, 'pan-cni': 0 } as const

const remove = () => [CLIENT, ENDPOINT].forEach(deleteNamespace)

/** Runs the command in the client's namespace. */
async function conform(...args: string[]) {
  const child = spawn('ip', ['netns', 'exec', CLIENT, process.execPath, 'dist/src/cli/main.js', 'conform', ...args])
  let stdout = ''
  child.stdout.on('data', data => (stdout += data))
  const [status] = await once(child, 'close')
  return { status, cases: JSON.parse(stdout).cases as { name: string; outcome: string; why?: string }[] }
}

async function withGateway<T>(profile: string, address: string, more: string[], use: () => Promise<T>): Promise<T> {
  const where = ['--listen', address, '--namespace', ENDPOINT, '--interface', 'eth0']
  const child = start(['gateway', ...where, '--profile', profile, '--control', join(directory, 'control'), ...more])
  const closed = once(child, 'close')
  try {
    let err = ''
    child.stderr.on('data', data => (err += data))
    await Promise.race([once(child.stdout, 'data'), closed.then(() => Promise.reject(new Error(err)))])
    return await use()
  } finally {
    child.kill()
    await closed
  }
}

describe.skipIf(missing !== '')(title('our gateway on an interface'), () => {
  beforeAll(() => {
    remove()
    for (const name of [CLIENT, ENDPOINT]) createNamespace(name)
    ipBatch([`link add eth0 mtu 9000 netns ${CLIENT} type veth peer name eth0 mtu 9000 netns ${ENDPOINT}`])
    const up = (last: number) => [
      `address add 10.97.0.${last}/24 dev eth0`,
      `address add fd97::${last}/64 dev eth0 nodad`,
      'link set eth0 up',
    ]
    ipBatch([...up(1), 'address add 10.97.0.3/24 dev eth0', 'address add fd97::3/64 dev eth0 nodad'], CLIENT)
    ipBatch(up(2), ENDPOINT)
  })
  afterAll(() => {
    remove()
    rmSync(directory, { recursive: true })
  })

  test.each(RUNS)('%s at %s passes', { timeout: LIMIT_MS }, async (profile, to) => {
    const [first, second] = to.includes('.') ? ['10.97.0.1', '10.97.0.3'] : ['fd97::1', 'fd97::3']
    const ours = ['--local', first, '--second-local', second]
    const run = () => conform('--profile', profile, '--target', to, ...ours, '--timeout', '3', '--json')
    const { status, cases } = await withGateway(profile, to, [], run)
    expect(cases.filter(({ outcome }) => outcome === 'fail')).toEqual([])
    expect(status).toBe(0)
    const asked = cases.filter(({ outcome }) => outcome === 'pass').map(({ name }) => name)
    expect(asked).toEqual(
      expect.arrayContaining([
        'answers',
        'outer-port',
        'outer-checksum-wrong-dropped',
        'outer-ttl',
        'flow-other-gateway',
      ]),
    )
    expect(asked.includes('outer-fragments')).toBe(to.includes('.'))
    expect(asked.includes('inner-vlan')).toBe(!['aws-gwlb', 'gcp-nsi'].includes(profile))
    expect(asked.filter(name => name.startsWith('rebalance-'))).toHaveLength(MOVED[profile])
    if (profile === 'aws-gwlb')
      expect(asked).toEqual(expect.arrayContaining(['outer-ports-kept', 'inner-largest-ipv4', 'inner-largest-ipv6']))
  })

  test('a link that is too small for the largest packets: that is not the target’s fault', {
    timeout: LIMIT_MS,
  }, async () => {
    ipBatch(['link set eth0 mtu 1600'], CLIENT)
    try {
      const args = ['--profile', 'aws-gwlb', '--target', '10.97.0.2', '--case', 'inner-largest-ipv4', '--json']
      const { status, cases } = await withGateway('aws-gwlb', '10.97.0.2', [], () => conform(...args))
      expect(status).toBe(0)
      expect(cases).toMatchObject([{ outcome: 'skip', why: 'the way to the target carries no packet of 8540 bytes' }])
    } finally {
      ipBatch(['link set eth0 mtu 9000'], CLIENT)
    }
  })
})
