// What the conformance suite sends as one cloud's load balancer or one node would, and what that one demands of the
// answer. Kept apart from gateway/profile on purpose: the suite judges that side too.

import { DetourError } from '../errors.ts'
import { setI32, setU16 } from '../wire/bytes.ts'
import * as geneve from '../wire/geneve.ts'
import * as vxlan from '../wire/vxlan.ts'
import type { Flow } from './inner.ts'

export interface ConformProfile {
  readonly name: string
  readonly kind: 'geneve' | 'vxlan'
  /** UDP port of the endpoint, and of us. */
  readonly port: number
  /** What is behind the tunnel header: an Ethernet frame, or an IP packet. */
  readonly inner: 'ethernet' | 'ip'
  /** VNIs that packets are sent with; more than one where the tunnel tells tenants apart by them. */
  readonly vnis: readonly number[]
  /** UDP ports of the answer: that of the tunnel, or both as they were sent. */
  readonly ports: 'tunnel' | 'kept'
  /** Largest inner packets that must come back, in bytes, beside 1500. */
  readonly largest?: number
  /** What the other of two tunnels has, where a packet comes by one and goes back by the other: clients' packets come by it. */
  readonly other?: { readonly port: number; readonly vni: number }
  /** False where nobody says whether options come back. */
  readonly optionsReturned: boolean
  /** The whole header comes back as it was, reserved bits and all. */
  readonly headerKept: boolean
  /** IP versions of the underlay. */
  readonly outer: readonly (4 | 6)[]
  /** Flows that are sent to another endpoint when theirs has failed: all, or datagrams while connections stay; undefined where nobody says. */
  readonly moves?: 'all' | 'datagrams'
  /** The GENEVE options that go with a packet of a flow; `reply` for one of the server's. */
  metadata(flow: Flow, reply: boolean): Uint8Array
}

const none = () => new Uint8Array(0)

/** One GENEVE option. */
export function option(classNumber: number, type: number, data: Uint8Array | readonly number[]): Uint8Array {
  const b = new Uint8Array(geneve.OPTION + data.length)
  b.set(data, geneve.writeOption(b, 0, classNumber, type, data.length))
  return b
}

/** Byte arrays, one behind the other. */
export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts))
}

function words(...values: number[]): Uint8Array {
  const b = new Uint8Array(values.length * 4)
  values.forEach((value, i) => {
    setI32(b, i * 4, value)
  })
  return b
}

/** A number of a flow that neither its addresses nor its ports show. */
export const cookieOf = (flow: Flow) => (0xc00c_0000 + flow.number) >>> 0

const GENEVE: ConformProfile = {
  name: 'geneve',
  kind: 'geneve',
  port: geneve.PORT,
  inner: 'ethernet',
  vnis: [1, 2, 0xfffffe],
  ports: 'tunnel',
  optionsReturned: true,
  headerKept: false,
  outer: [4, 6],
  moves: 'all',
  metadata(flow, reply) {
    const data = words(0, cookieOf(flow))
    setU16(data, 0, 1)
    data[2] = reply ? 1 : 0
    return option(geneve.DETOUR_CLASS, 1, data)
  },
}

const VXLAN: ConformProfile = {
  name: 'vxlan',
  kind: 'vxlan',
  port: vxlan.PORT,
  inner: 'ethernet',
  vnis: [1, 2, 0xfffffe],
  ports: 'tunnel',
  optionsReturned: true,
  headerKept: false,
  outer: [4, 6],
  moves: 'all',
  metadata: none,
}

const AWS_GWLB: ConformProfile = {
  ...GENEVE,
  name: 'aws-gwlb',
  inner: 'ip',
  vnis: [0],
  ports: 'kept',
  largest: 8500,
  headerKept: true,
  outer: [4],
  metadata: flow =>
    concat(
      option(0x0108, 1, words(0x0123_4567, 0x89ab_cdef)),
      option(0x0108, 2, words(0xfedc_ba98, 0x7654_3210)),
      option(0x0108, 3, words(cookieOf(flow))),
    ),
}

/** Network id 28 bits, reserved 3, direction 1: set in what leaves the client. */
const GCP_NETWORK = 0x0abc_def0

const GCP_NSI: ConformProfile = {
  ...GENEVE,
  name: 'gcp-nsi',
  inner: 'ip',
  vnis: [0],
  optionsReturned: false,
  metadata: (flow, reply) =>
    concat(
      option(0x0132, 1, words(GCP_NETWORK | (reply ? 0 : 1))),
      option(0x0132, 2, words(0x0123_4567, cookieOf(flow))),
      option(0x0132, 3, words(0xfedc_ba98, 0x7654_3210)),
    ),
}

const AZURE_GWLB: ConformProfile = {
  ...VXLAN,
  name: 'azure-gwlb',
  port: 10800,
  vnis: [800, 801],
  other: { port: 10801, vni: 801 },
  moves: 'datagrams',
}

const PAN_CNI: ConformProfile = { ...VXLAN, name: 'pan-cni', port: 6080, vnis: [1], moves: undefined }

const PROFILES: readonly ConformProfile[] = [GENEVE, VXLAN, AWS_GWLB, GCP_NSI, AZURE_GWLB, PAN_CNI]

/** Names that people may give. */
export const CONFORM_PROFILES = PROFILES.map(({ name }) => name)

/** The profile of a name; throws `usage` naming those there are. */
export function conformProfile(name: string): ConformProfile {
  const found = PROFILES.find(each => each.name === name)
  if (found !== undefined) return found
  throw new DetourError('usage', `profile ${name} is not allowed; allowed: ${CONFORM_PROFILES.join(', ')}`)
}
