// What is seen on a link: tcpdump writes a capture of everything, tshark takes it apart.

import { execFileSync } from 'node:child_process'
import { GATEWAY, NODE, type Scene, until } from './scene.ts'

/** An IP packet as tshark reads it, the innermost one where there is a tunnel around it. */
export interface Seen {
  /** Of the outer header; empty where there is no tunnel. */
  outer: string
  source: string
  destination: string
  protocol: string
  sourcePort: number
  destinationPort: number
}

export interface Watch {
  /** Ends the capture, and returns the packets in it, each as often as an interface saw it. */
  stop(): Promise<Seen[]>
}

/** A packet to the discard port ends a capture: what was seen before it has been written by then. */
const MARKER_PORT = 9
const PROTOCOL: Record<string, string> = { 1: 'icmp', 6: 'tcp', 17: 'udp' }
const FIELDS = ['ip.src', 'ip.dst', 'ip.proto', 'tcp.srcport', 'tcp.dstport', 'udp.srcport', 'udp.dstport']
const LIMIT_MS = 30_000

let captures = 0

/** Captures what is in the tunnel. */
export const watchTunnel = (scene: Scene) => watch(scene, 'gate', scene.downlink, 'udp port 6081')

/** Captures what passes an interface (`any`: all, also those to come) of the node or the gateway. */
export async function watch(scene: Scene, role: 'node' | 'gate', name: string, filter: string): Promise<Watch> {
  const file = scene.file(`capture-${++captures}.pcap`)
  const all = `(${filter}) or (udp dst port ${MARKER_PORT})`
  // NB: a place in its ring is as large as the longest packet, of which few would fit: it would lose some when it has to wait.
  const ring = ['-s', '1000', '-B', '16384']
  const options = ['-i', name, ...ring, '-nn', '-U', '-l', '--immediate-mode', '--print', '-Z', 'root', '-w', file]
  // NB: its messages and its packets come by one pipe, which is read to the end.
  const command = ['sh', '-c', 'exec tcpdump "$@" 2>&1', 'tcpdump', ...options, all]
  const child = scene.start(role, `tcpdump ${name}`, command)
  await child.line(line => line.includes('listening on'), LIMIT_MS)
  return {
    async stop() {
      const to = role === 'node' ? GATEWAY : NODE
      const marked = async () => {
        await scene.run(role, ['bash', '-c', `echo end >/dev/udp/${to}/${MARKER_PORT}`])
        return child.lines.some(line => line.includes(`> ${to}.${MARKER_PORT}: `))
      }
      await until('the capture ends', marked, LIMIT_MS)
      await child.stop('SIGINT')
      return packets(file).filter(packet => packet.destinationPort !== MARKER_PORT)
    },
  }
}

function packets(file: string): Seen[] {
  const fields = FIELDS.flatMap(field => ['-e', field])
  // Without a heuristic: VXLAN and GENEVE go by their ports.
  const text = execFileSync('tshark', ['-n', '-r', file, '-Y', 'ip', '-T', 'fields', ...fields], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    maxBuffer: 1 << 28,
  })
  return text.split('\n').filter(Boolean).map(seen)
}

// Where a header occurs twice, tshark prints both, the outer one first; an ICMP error quotes one more, which is left out here.
function seen(line: string): Seen {
  const [sources, destinations, protocols, ...ports] = line.split('\t').map(field => field.split(','))
  const inside = ports[3].includes('6081') ? 1 : 0
  const protocol = PROTOCOL[protocols[inside]] ?? protocols[inside]
  const [tcpSource, tcpDestination, udpSource, udpDestination] = ports
  const [source, destination] =
    protocol === 'tcp' ? [tcpSource[0], tcpDestination[0]] : [udpSource[inside], udpDestination[inside]]
  return {
    outer: inside === 1 ? sources[0] : '',
    source: sources[inside],
    destination: destinations[inside],
    protocol,
    sourcePort: Number(source ?? 0),
    destinationPort: Number(destination ?? 0),
  }
}
