// Somebody else's inspector behind the gateway: Suricata in IPS mode and a bridge with nftables, between pods whose packets
// come and go by GENEVE. What the gateway is sent and what it returns is read by tcpdump and tshark.

import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { DROP } from '../../src/drop.ts'
import { type RunningGateway, startGateway } from '../../src/gateway/gateway.ts'
import { parseRules } from '../../src/gateway/rules.ts'
import type { RunningNode } from '../../src/node/node.ts'
import { createNamespace, deleteNamespace, inNamespace, ipBatch } from '../../src/os/netns.ts'
import { buildCluster, type Cluster, stagesOf, until } from './cluster.ts'
import { missing, runIn, title } from './support.ts'

const lacks = (...commands: string[]) => {
  if (missing !== '') return missing
  const absent = commands.filter(command => {
    try {
      execFileSync('which', [command])
      return false
    } catch {
      return true
    }
  })
  return absent.length === 0 ? '' : `needs ${absent.join(', ')}`
}
const skipped = (name: string, reason: string) =>
  reason === '' || missing !== '' ? title(name) : `${name} (skipped: ${reason})`

const noSuricata = lacks('suricata', 'tshark', 'tcpdump')
const noNft = lacks('nft', 'tshark', 'tcpdump')

const PREFIX = 'dtq3'
const APPLIANCE = `${PREFIX}-appliance`
const PORT = 80
const OTHER_PORT = 8080
const LIMIT_MS = 120_000
const MARK = 'all-before-this-is-there'

/** Says which pages it was asked for; one connection each. */
const SERVE = `for (const port of [${PORT}, ${OTHER_PORT}])
  require('http').createServer((q, r) => { console.log('asked ' + port + q.url); r.setHeader('connection', 'close'); r.end('page ' + q.url + ' '.repeat(+q.url.split('?')[1] || 0)) })
    .listen(port, '::', () => console.log('ready ' + port))`

const GET = `require('http').get(process.argv[1], { agent: false }, r => { let got = ''; r.on('data', d => (got += d)); r.on('end', () => console.log(got)) })
  .on('error', error => console.log(error.code))`

const POLICY = parseRules('{ rules: [{ name: no-8443, protocol: tcp, ports: [8443], action: reset }] }', 'rules.yaml')

/** Of a tunnel packet as tshark sees it: addresses outside and inside, what UDP carries, GENEVE options, whether TCP's checksum is right. */
const FIELDS = ['ip.src', 'udp.payload', 'geneve.options', 'tcp.checksum.status']
const GOOD = '1'

/** The tunnel header of a row of FIELDS, and what it carries but for the TCP checksum, which the sender's kernel left open. */
function parts([, payload, options]: string[], inner: 'ethernet' | 'ip'): [header: string, packet: string] {
  const header = payload.slice(0, 16 + options.length)
  const packet = payload.slice(header.length)
  const network = inner === 'ethernet' ? 28 : 0
  const checksum = network + (packet[network] === '4' ? 40 : 80) + 32
  return [header, packet.slice(0, checksum) + packet.slice(checksum + 4)]
}

/** What the gateway returned is what it was sent, tunnel header and all, with complete checksums; `changed` undoes what the appliance did. */
function expectReturned(rows: string[][], inner: 'ethernet' | 'ip', changed = (packet: string) => packet): void {
  const from = (address: string) => rows.filter(([sources]) => sources.split(',')[0] === address)
  const sent = from('10.99.0.11').map(row => parts(row, inner).map(changed).join(' '))
  const returned = from('10.99.0.2')
  // Of each way: SYN, what was said, and an acknowledgement.
  expect(returned.length).toBeGreaterThanOrEqual(6)
  for (const row of returned) {
    expect(sent).toContain(parts(row, inner).map(changed).join(' '))
    expect(row[3]).toBe(GOOD)
  }
  expect(new Set(returned.map(row => parts(row, inner)[0])).size).toBeGreaterThanOrEqual(2)
}

interface Program {
  process: ChildProcess
  /** What it has printed. */
  said(): string
  /** Ends it by that signal and waits until it is gone. */
  end(signal?: NodeJS.Signals): Promise<void>
}

/** Starts a program in a namespace and resolves when it says that it is ready. */
async function begin(namespace: string, ready: RegExp, command: string, ...args: string[]): Promise<Program> {
  const child = inNamespace(namespace, () => spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] }))
  let out = ''
  const gone = new Promise<void>(resolve => child.once('close', () => resolve()))
  await new Promise<void>((resolve, reject) => {
    const hear = (data: Buffer) => {
      out += data
      if (ready.test(out)) resolve()
    }
    child.stdout.on('data', hear)
    child.stderr.on('data', hear)
    gone.then(() => reject(new Error(`${command}: ${out}`)))
  })
  return {
    process: child,
    said: () => out,
    async end(signal = 'SIGTERM') {
      child.kill(signal)
      await gone
    },
  }
}

/** Two pods on a node, a gateway, and an appliance's namespace with s0 and s1, whose other ends are the gateway's `in` and `out`. */
class Scene {
  readonly cluster: Cluster
  readonly folder = mkdtempSync(join(tmpdir(), 'detour-inline-'))
  readonly programs: Program[] = []
  private node?: RunningNode
  gateway!: RunningGateway
  server!: Program

  constructor() {
    this.cluster = buildCluster(PREFIX, 1, 2)
    deleteNamespace(APPLIANCE)
    createNamespace(APPLIANCE)
    const own = this.cluster.gateways[0].namespace
    const pair = (near: string, far: string) =>
      ipBatch([`link add ${near} netns ${own} type veth peer name ${far} netns ${APPLIANCE}`])
    pair('in', 's0')
    pair('out', 's1')
    const up = (name: string) => `link set ${name} addrgenmode none up`
    ipBatch([up('in'), up('out')], own)
    ipBatch([up('s0'), up('s1')], APPLIANCE)
    // A capture then shows packets rather than the super-packets of the outer UDP in which they travel.
    inNamespace(own, () => execFileSync('ethtool', ['-K', 'eth0', 'tx-udp-segmentation', 'off']))
  }

  async start(profile: 'geneve' | 'aws-gwlb' = 'geneve'): Promise<void> {
    const [{ namespace, address }] = this.cluster.gateways
    const [node] = this.cluster.nodes
    this.gateway = await startGateway({
      ...{ profile, address, namespace, interface: 'eth0', policy: POLICY },
      inline: ['in', 'out'],
    })
    const tunnel = { profile, local: node.address, remote: address, ...(profile === 'geneve' && { vni: 77 }) }
    this.node = await node.start({ tunnel, failMode: 'closed' })
    this.server = await begin(node.pods[1].namespace, /ready[\s\S]*ready/, process.execPath, '-e', SERVE)
  }

  /** Begins a capture of the tunnel's wire; the function ends it and has tshark read it. */
  async capture(): Promise<(filter: string, ...fields: string[]) => Promise<string[][]>> {
    const file = join(this.folder, 'wire.pcap')
    const [{ namespace, address }] = this.cluster.gateways
    const filter = ['udp', 'port', '6081', 'or', 'udp', 'port', '9']
    // NB: in this mode there is room for eight packets otherwise.
    const args = ['-U', '--immediate-mode', '-B', '65536', '-i', 'eth0', '-w', file, ...filter]
    const tcpdump = await begin(namespace, /listening on/, 'tcpdump', ...args)
    this.programs.push(tcpdump)
    let ended = false
    return async (filter, ...fields) => {
      if (!ended) {
        // What came before this has been written when this has.
        const say = `echo -n ${MARK} > /dev/udp/${address}/9`
        await runIn(this.cluster.nodes[0].namespace, 'bash', '-c', say)
        await until(() => readFileSync(file).includes(MARK), 'the mark in the capture')
        await tcpdump.end('SIGINT')
      }
      ended = true
      const wanted = fields.flatMap(field => ['-e', field])
      const out = await runIn(
        '',
        'tshark',
        '-o',
        'tcp.check_checksum:TRUE',
        '-r',
        file,
        '-Y',
        filter,
        '-T',
        'fields',
        ...wanted,
      )
      return out.split('\n').flatMap(line => (line.includes('\t') ? [line.split('\t')] : []))
    }
  }

  url(path: string, port = PORT, six = false): string {
    const [, { four, six: address }] = this.cluster.nodes[0].pods
    return `http://${six ? `[${address}]` : four}:${port}${path}`
  }

  /** The page, or what went wrong. */
  async get(url: string): Promise<string> {
    return (await runIn(this.cluster.nodes[0].pods[0].namespace, process.execPath, '-e', GET, url)).trim()
  }

  /** Asks for a page that never comes. */
  async ask(url: string): Promise<Program> {
    const [{ namespace }] = this.cluster.nodes[0].pods
    const asking = await begin(namespace, /asking/, process.execPath, '-e', `console.log('asking'); ${GET}`, url)
    this.programs.push(asking)
    return asking
  }

  dropped(stage: string, reason: number): number {
    return stagesOf(this.gateway, stage).reduce((sum, each) => sum + each.drops(reason), 0)
  }

  async stop(): Promise<void> {
    for (const program of [...this.programs, ...(this.server ? [this.server] : [])]) await program.end('SIGKILL')
    await this.node?.stop()
    await this.gateway?.stop()
    this.cluster.remove()
    deleteNamespace(APPLIANCE)
    rmSync(this.folder, { recursive: true, force: true })
  }
}

describe.skipIf(noSuricata !== '')(skipped('Suricata inline', noSuricata), () => {
  vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS })
  let scene: Scene

  const RULES = `
drop http any any -> any any (msg:"no secrets"; flow:established,to_server; http.uri; content:"/secret"; sid:1; rev:1;)
reject tcp any any -> any ${OTHER_PORT} (msg:"not that port"; flags:S; sid:2; rev:1;)
`
  const settings = (folder: string) => `%YAML 1.1
---
vars: { address-groups: { HOME_NET: any, EXTERNAL_NET: any }, port-groups: { HTTP_PORTS: any } }
default-log-dir: ${folder}
default-rule-path: ${folder}
rule-files: [own.rules]
logging: { default-log-level: notice, outputs: [{ console: { enabled: yes } }] }
outputs: [{ eve-log: { enabled: yes, filetype: regular, filename: eve.json, types: [alert, http] } }]
stream: { inline: yes, checksum-validation: yes }
app-layer: { protocols: { http: { enabled: yes } } }
unix-command: { enabled: no }
af-packet:
${[0, 1]
  .map(
    i => `  - { interface: s${i}, threads: 1, cluster-id: ${90 + i}, cluster-type: cluster_flow, defrag: no, use-mmap: yes, ring-size: 512, buffer-size: 65536,
      checksum-checks: yes, copy-mode: ips, copy-iface: s${1 - i} }`,
  )
  .join('\n')}
`

  beforeAll(async () => {
    scene = new Scene()
    const { folder } = scene
    // By the kernel goes only what Suricata sends of its own accord.
    const [{ mac, four }] = scene.cluster.nodes[0].pods
    ipBatch([`route add ${four} dev s0`, `neighbor add ${four} lladdr ${mac} dev s0`], APPLIANCE)
    writeFileSync(join(folder, 'own.rules'), RULES)
    writeFileSync(join(folder, 'suricata.yaml'), settings(folder))
    const args = ['-c', join(folder, 'suricata.yaml'), '--af-packet', '-l', folder, '-k', 'all']
    scene.programs.push(await begin(APPLIANCE, /Engine started/, 'suricata', ...args))
    await scene.start()
  })
  afterAll(() => scene?.stop())

  const eve = () =>
    readFileSync(join(scene.folder, 'eve.json'), 'utf8')
      .split('\n')
      .slice(0, -1)
      .map(line => JSON.parse(line))

  it('passes what it has nothing against, its tunnel headers byte for byte as they came', async () => {
    const read = await scene.capture()
    expect(await scene.get(scene.url('/plain'))).toBe('page /plain')
    expect(await scene.get(scene.url('/plain6', PORT, true))).toBe('page /plain6')
    await until(() => eve().filter(line => line.event_type === 'http').length >= 2, 'its log of the requests')
    expect(eve().map(line => line.http?.url)).toEqual(expect.arrayContaining(['/plain', '/plain6']))
    expectReturned(await read('geneve && tcp', ...FIELDS), 'ethernet')
  })

  it('passes super-packets, cut to what its interfaces carry', async () => {
    const page = await scene.get(scene.url('/long?600000'))
    expect(page).toBe('page /long?600000')
    expect(eve().filter(line => line.event_type === 'alert')).toEqual([])
  })

  it('stops the request that its rule is about, and no other', async () => {
    const secret = await scene.ask(scene.url('/secret?1'))
    await until(() => eve().some(line => line.alert?.signature_id === 1), 'an alert')
    expect(eve().find(line => line.event_type === 'alert')).toMatchObject({
      alert: { action: 'blocked' },
      src_ip: scene.cluster.nodes[0].pods[0].four,
      http: { url: '/secret?1' },
    })
    expect(await scene.get(scene.url('/after'))).toBe('page /after')
    expect(secret.said()).toBe('asking\n')
    await until(() => scene.server.said().includes('asked 80/after'), 'what the server says of the request')
    expect(scene.server.said()).not.toContain('secret')
  })

  it('is heard when it answers itself', async () => {
    expect(await scene.get(scene.url('/', OTHER_PORT))).toBe('ECONNREFUSED')
    await until(() => eve().some(line => line.alert?.signature_id === 2), 'an alert')
  })

  it('is not asked about what our own rules stop', async () => {
    expect(await scene.get(scene.url('/', 8443))).toBe('ECONNREFUSED')
    await until(() => scene.dropped('inspect', DROP.RESET) > 0, 'the drop of what a rule resets')
    expect(eve().filter(line => line.dest_port === 8443)).toEqual([])
  })
})

describe.skipIf(noNft !== '')(skipped('nftables on a bridge inline', noNft), () => {
  vi.setConfig({ testTimeout: LIMIT_MS, hookTimeout: LIMIT_MS })
  let scene: Scene

  const RULES = `
    table bridge inspector {
      chain between { type filter hook forward priority 0; tcp dport ${OTHER_PORT} counter drop; ip ttl set 42; }
    }`

  beforeAll(async () => {
    scene = new Scene()
    ipBatch(
      [
        'link add br0 type bridge mcast_snooping 0',
        'link set br0 addrgenmode none up',
        'link set s0 master br0',
        'link set s1 master br0',
      ],
      APPLIANCE,
    )
    const file = join(scene.folder, 'rules.nft')
    writeFileSync(file, RULES)
    await runIn(APPLIANCE, 'nft', '-f', file)
    await scene.start('aws-gwlb')
  })
  afterAll(() => scene?.stop())

  it('passes what it has nothing against, changed, its options byte for byte as they came', async () => {
    const read = await scene.capture()
    expect(await scene.get(scene.url('/plain'))).toBe('page /plain')
    const rows = await read('geneve && tcp', ...FIELDS)
    // Its TTL, and with that the sum of its header.
    expectReturned(rows, 'ip', part =>
      part.startsWith('45') ? part.slice(0, 16) + part.slice(18, 20) + part.slice(24) : part,
    )
    const returned = rows.filter(([sources]) => sources.startsWith('10.99.0.2,'))
    expect(new Set(returned.map(row => parts(row, 'ip')[1].slice(16, 18)))).toEqual(new Set(['2a']))
    // Three options of AWS: 32 bytes.
    expect(new Set(rows.map(([, , options]) => options.length))).toEqual(new Set([64]))
  })

  it('stops a port', async () => {
    const asking = await scene.ask(scene.url('/', OTHER_PORT))
    const counted = () => runIn(APPLIANCE, 'nft', 'list', 'chain', 'bridge', 'inspector', 'between')
    await until(async () => /counter packets [1-9]/.test(await counted()), 'a packet that the bridge drops')
    expect(await scene.get(scene.url('/after'))).toBe('page /after')
    expect(asking.said()).toBe('asking\n')
    expect(scene.server.said()).not.toContain(`asked ${OTHER_PORT}`)
  })

  it('gets nothing through that belongs to no flow', async () => {
    const before = scene.dropped('from appliance', DROP.UNKNOWN_FLOW)
    const { mac, four } = scene.cluster.nodes[0].pods[0]
    const frame = `Ether(dst='${mac}')/IP(src='192.0.2.7',dst='${four}')/UDP(sport=7,dport=7)/b'stray'`
    await runIn(APPLIANCE, '/usr/bin/python3', '-c', `from scapy.all import *; sendp(${frame}, iface='s0', verbose=0)`)
    await until(() => scene.dropped('from appliance', DROP.UNKNOWN_FLOW) > before, 'the drop of a stray packet')
  })

  it('is heard again when its interfaces were down', async () => {
    const [{ namespace }] = scene.cluster.gateways
    ipBatch(['link set in down', 'link set out down'], namespace)
    const lost = () => scene.dropped('packet in', DROP.DEVICE_ERROR)
    await scene.ask(scene.url('/down'))
    await until(() => lost() > 0, 'the loss of a packet')
    ipBatch(['link set in up', 'link set out up'], namespace)
    expect(await scene.get(scene.url('/up'))).toBe('page /up')
  })

  it('is refused where an interface is missing or down', async () => {
    const [{ namespace }] = scene.cluster.gateways
    const start = (...inline: [string, string]) =>
      startGateway({ profile: 'geneve', address: '127.0.0.1', namespace, policy: POLICY, inline })
    await expect(start('in', 'nowhere')).rejects.toThrow(`interface nowhere does not exist in namespace ${namespace}`)
    ipBatch(['link set out down'], namespace)
    await expect(start('in', 'out')).rejects.toThrow('interface out is down: ip link set out up')
  })
})
