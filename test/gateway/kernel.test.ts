// The gateway against kernels: a node made of nothing but Linux takes two pods' real TCP through `detour gateway` and back,
// on every rung.
//
//   client ─ veth ─┐                                       ┌─► gateway ─┐
//                  bridge ─ vxlan device ─ uplink ─────────┤            │
//   server ─ veth ─┘                                       └◄───────────┘
//
// The pods' ports of the bridge are isolated from each other, and it learns nothing: all that a pod sends goes out by the
// VXLAN device, and what comes back there goes to both, of which one wants it.

import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterAll, afterEach, describe, expect, it } from 'vitest'
import { connectControl } from '../../src/control/client.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { start } from '../cli/run.ts'
import { missing, runIn, title, transfer } from '../netns/support.ts'
import { said } from '../processes.ts'
import { fixture } from './harness.ts'

const [CLIENT, SERVER, NODE, GATEWAY] = ['client', 'server', 'node', 'gateway'].map(role => `dtg${process.pid}-${role}`)
const UPLINK = 'eth0'
const MAC = { client: '02:00:00:00:00:0c', server: '02:00:00:00:00:05' }
const POD = { 4: { client: '10.244.0.2', server: '10.244.0.3' }, 6: { client: 'fd00:244::2', server: 'fd00:244::3' } }
const END = { 4: { node: '10.99.0.1', gateway: '10.99.0.2' }, 6: { node: 'fd00:99::1', gateway: 'fd00:99::2' } }
const children: ChildProcess[] = []
const directory = mkdtempSync(join(tmpdir(), 'detour-test-'))
const log = join(directory, 'verdicts')

type Family = 4 | 6

/** Namespaces, links and a node that sends what its pods send through the tunnel, and what comes back to the other pod. */
function build(family: Family): void {
  remove()
  for (const name of [CLIENT, SERVER, NODE, GATEWAY]) createNamespace(name)
  const quiet = (name: string) => `link set ${name} addrgenmode none up`
  for (const [role, name, far] of [
    ['client', CLIENT, 'server'],
    ['server', SERVER, 'client'],
  ] as const) {
    ipBatch([`link add eth0 netns ${name} address ${MAC[role]} type veth peer name ${role} netns ${NODE}`])
    ipBatch(
      [
        `address add ${POD[4][role]}/24 dev eth0`,
        `address add ${POD[6][role]}/64 dev eth0 nodad`,
        quiet('eth0'),
        `neighbor add ${POD[4][far]} lladdr ${MAC[far]} dev eth0`,
        `neighbor add ${POD[6][far]} lladdr ${MAC[far]} dev eth0`,
      ],
      name,
    )
  }
  ipBatch([`link add uplink netns ${NODE} mtu 1600 type veth peer name ${UPLINK} netns ${GATEWAY} mtu 1600`])
  ipBatch(
    [
      `address add ${END[4].gateway}/24 dev ${UPLINK}`,
      `address add ${END[6].gateway}/64 dev ${UPLINK} nodad`,
      quiet(UPLINK),
    ],
    GATEWAY,
  )
  const { node, gateway } = END[family]
  ipBatch(
    [
      `address add ${END[4].node}/24 dev uplink`,
      `address add ${END[6].node}/64 dev uplink nodad`,
      'link add cni0 type bridge mcast_snooping 0',
      `link add tun0 mtu 1500 type vxlan id 77 dstport 4789 nolearning local ${node} remote ${gateway}`,
      ...['client', 'server', 'tun0'].map(name => `link set ${name} master cni0`),
      ...['client', 'server', 'tun0'].map(name => `link set ${name} type bridge_slave learning off`),
      ...['client', 'server'].map(name => `link set ${name} type bridge_slave isolated on`),
      ...['uplink', 'client', 'server', 'tun0', 'cni0'].map(quiet),
    ],
    NODE,
  )
}

function remove(): void {
  for (const name of [CLIENT, SERVER, NODE, GATEWAY]) deleteNamespace(name)
}

interface Gateway {
  /** Resolves when no stage holds a packet back any more. */
  idle(): Promise<void>
  /** Resolves with what it said at its end. */
  stop(): Promise<Summary>
}

/** Starts `detour gateway` and resolves when it listens. */
async function startGateway(family: Family, ...more: string[]): Promise<Gateway> {
  const address = family === 4 ? END[4].gateway : `[${END[6].gateway}]`
  const files = ['--policy', fixture('example.yaml'), '--log', log, '--control', join(directory, 'control')]
  const child = start([
    'gateway',
    '--listen',
    address,
    '--profile',
    'vxlan',
    '--namespace',
    GATEWAY,
    '--json',
    ...files,
    ...more,
  ])
  children.push(child)
  let out = ''
  child.stderr.on('data', data => (out += data))
  const closed = new Promise<number | null>(resolve => child.on('close', resolve))
  await new Promise<void>((resolve, reject) => {
    child.stdout.on('data', data => {
      out += data
      if (out.includes('"listening"')) resolve()
    })
    closed.then(() => reject(new Error(`the gateway ended: ${out}`)))
  })
  return {
    async idle() {
      const client = await connectControl(join(directory, 'control'))
      try {
        // NB: counters are published now and then: they may be of some time ago, when nothing was held back either.
        for (let before = ''; ; await sleep(500)) {
          const { rows } = await client.ask('stats', {})
          const faults = rows.filter(({ stage }) => stage.startsWith('faults'))
          const balanced = faults.every(each => each.inPackets + each.created === each.outPackets + each.drops)
          const now = JSON.stringify(faults.map(each => each.inPackets))
          if (balanced && now === before) return
          before = now
        }
      } finally {
        client.close()
      }
    },
    async stop() {
      child.kill('SIGTERM')
      expect(await closed, out).toBe(0)
      return JSON.parse(out.slice(out.indexOf('{"event":"stopped"')))
    },
  }
}

interface Summary {
  stages: {
    stage: string
    inPackets: number
    outPackets: number
    outBytes: number
    created: number
    errors: number
    drops: number
  }[]
  drops: { stage: string; reason: string; packets: number }[]
}

function verdicts(): { rule: string; protocol: string }[] {
  return readFileSync(log, 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
}

/** A web server in the server's namespace that answers everything. */
async function serve(port: number): Promise<void> {
  const code = `require('http').createServer((q, r) => r.end('you asked for ' + q.url)).listen(${port}, '::', () => console.log('ready'))`
  const child = inNamespace(SERVER, () =>
    spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] }),
  )
  children.push(child)
  await said(child.stdout, 'ready')
}

/** What curl says in the client's namespace: the answer, or its error. */
const get = (family: Family, path: string, port = 80, limit = '20') =>
  runIn(
    CLIENT,
    'curl',
    '-sS',
    '-m',
    limit,
    `http://${family === 4 ? POD[4].server : `[${POD[6].server}]`}:${port}${path}`,
  ).catch(error => (error as Error).message)

afterEach(() => {
  for (const child of children.splice(0)) child.kill('SIGKILL')
  remove()
  rmSync(log, { force: true })
})
afterAll(() => rmSync(directory, { recursive: true }))

const RUNGS = { 4: ['tunnel-gso', 'uso', 'plain', 'udp-socket'], 6: ['tunnel-gso', 'udp-socket'] }

describe.skipIf(missing !== '')(title('gateway and kernel'), () => {
  for (const family of [4, 6] as const) {
    it(`over IPv${family}: what is allowed arrives, what a rule stops does not`, async () => {
      build(family)
      const gateway = await startGateway(family, '--interface', UPLINK)
      await serve(80)
      for (const inner of [4, 6] as const) {
        expect(await get(inner, '/allowed')).toBe('you asked for /allowed')
        expect(await get(inner, '/secret', 80, '5')).toMatch(/timed out/i)
        // A rule that resets a SYN, and one that resets both ends of a connection that is open: curl says which.
        expect(await get(inner, '/', 8001)).toMatch(/refused|connect to|Could not connect/i)
        expect(await get(inner, '/EICAR-STANDARD-ANTIVIRUS-TEST-FILE')).toMatch(/reset by peer/i)
      }
      // The server's end of that connection is gone too: only those that were dropped without a word are left.
      const left = async () =>
        (await runIn(SERVER, 'ss', '-Htn', 'state', 'established')).trim().split('\n').filter(Boolean)
      await expect.poll(async () => (await left()).length).toBeLessThanOrEqual(2)
      const { drops, stages } = await gateway.stop()
      for (const { stage, inPackets, outPackets, created, drops: dropped } of stages)
        if (!stage.startsWith('tap')) expect(inPackets + created, stage).toBe(outPackets + dropped)
      expect(drops.map(({ stage, reason }) => `${stage} ${reason}`).sort()).toEqual(['inspect policy', 'inspect reset'])
      expect(
        verdicts()
          .filter(v => v.protocol === 'tcp')
          .map(v => v.rule),
      ).toEqual(Array(2).fill(['default', 'default', 'block-secret', 'no-telnet', 'default', 'no-test-virus']).flat())
    })

    for (const rung of RUNGS[family])
      it(`over IPv${family}: a bulk transfer on rung ${rung}`, async () => {
        build(family)
        // NB: over a veth, the kernel leaves checksums and segmentation of the inner packet to whoever takes it, and a UDP
        // socket cannot tell. A wire would have made it good.
        if (rung === 'udp-socket') await runIn(NODE, 'ethtool', '-K', 'uplink', 'tx', 'off')
        const gateway = await startGateway(family, '--interface', UPLINK, '--offload', rung)
        await transfer(CLIENT, SERVER, POD[4].server)
        const { stages, drops } = await gateway.stop()
        expect(drops).toEqual([])
        const { outPackets, outBytes } = stages.find(({ stage }) => stage === 'turn')!
        // On the best rung super-packets stay whole.
        if (rung === 'tunnel-gso') expect(outBytes / outPackets).toBeGreaterThan(10_000)
      })

    for (const rung of RUNGS[family])
      it(`over IPv${family}: faults befall packets as they are on a wire, and break no checksum, on rung ${rung}`, async () => {
        build(family)
        if (rung === 'udp-socket') await runIn(NODE, 'ethtool', '-K', 'uplink', 'tx', 'off')
        const faults = ['--fault', 'drop=0.2%,reorder=1%,duplicate=1%,direction=both', '--fault', 'delay=1ms,share=1%']
        const gateway = await startGateway(family, '--interface', UPLINK, '--offload', rung, ...faults)
        await transfer(CLIENT, SERVER, POD[4].server)
        expect([await wrongChecksums(NODE), await wrongChecksums(SERVER), await wrongChecksums(CLIENT)]).toEqual([
          0, 0, 0,
        ])
        // The last of a connection may still be held back, and would count as that.
        await gateway.idle()
        const { stages, drops } = await gateway.stop()
        expect(drops.map(({ stage, reason }) => `${stage} ${reason}`).sort()).toEqual([
          'faults receive fault',
          'faults transmit fault',
        ])
        for (const way of ['faults receive', 'faults transmit']) {
          const stage = stages.find(each => each.stage === way)!
          expect(stage.inPackets + stage.created).toBe(stage.outPackets + stage.drops)
          expect(stage.created).toBeGreaterThan(0)
          expect(stage.outBytes / stage.outPackets).toBeLessThan(1600)
        }
      })
  }

  it.each([4, 6] as const)('over IPv%i: every wrong bit makes the outer checksum wrong', async family => {
    build(family)
    const gateway = await startGateway(family, '--interface', UPLINK, '--fault', 'corrupt=1%,protocol=tcp')
    await transfer(CLIENT, SERVER, POD[4].server)
    const { stages } = await gateway.stop()
    const { errors } = stages.find(({ stage }) => stage === 'faults transmit')!
    expect(errors).toBeGreaterThan(0)
    // The kernel may still have some of them in its queues.
    await expect.poll(() => wrongChecksums(NODE)).toBe(errors)
    expect([await wrongChecksums(SERVER), await wrongChecksums(CLIENT)]).toEqual([0, 0])
  })
})

/** How many packets this namespace's kernel has refused for their checksum. */
async function wrongChecksums(namespace: string): Promise<number> {
  const counters = await runIn(namespace, 'nstat', '-asz')
  return [...counters.matchAll(/^(?:Tcp|Udp6?)InCsumErrors +(\d+)/gm)].reduce((sum, [, n]) => sum + Number(n), 0)
}
