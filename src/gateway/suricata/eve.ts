// Alerts as Suricata's EVE JSON (Suricata 7 user guide, "Eve JSON Format"), for log pipelines that read that.

import ipaddr from 'ipaddr.js'
import type { DnsQuestion } from '../l7/dns.ts'
import type { RequestHead } from '../l7/http.ts'
import type { ClientHello } from '../l7/tls.ts'
import { isoTime } from '../log.ts'
import type { Signature } from './model.ts'

/** What has matched, and what the flow had said by then. */
export interface Alert {
  signature: Signature
  /** Whether the packet comes from who opened the flow. */
  toServer: boolean
  application?: 'http' | 'tls' | 'dns'
  request?: RequestHead
  hello?: ClientHello
  question?: DnsQuestion
}

/** The packet that brought it to light, and its flow. */
export interface Event {
  timeMs: number
  flow: number
  protocol: number
  source: string
  sourcePort: number
  destination: string
  destinationPort: number
}

/** Names of protocols as Suricata writes them; of those that are seldom met there are numbers. */
const PROTOCOLS: Record<number, string> = {
  1: 'ICMP',
  2: 'IGMP',
  4: 'IP-in-IP',
  6: 'TCP',
  17: 'UDP',
  41: 'IPv6',
  47: 'GRE',
  50: 'ESP',
  51: 'AH',
  58: 'IPv6-ICMP',
  89: 'OSPF',
  103: 'PIM',
  112: 'VRRP',
  132: 'SCTP',
  136: 'UDPLite',
}
/** Protocols of which Suricata knows flows. */
const DIRECTED: readonly number[] = [1, 6, 17, 58, 132]
/** Names of record types as Suricata writes them; others are numbers. */
const TYPES: Record<number, string> = {
  1: 'A',
  2: 'NS',
  5: 'CNAME',
  6: 'SOA',
  12: 'PTR',
  15: 'MX',
  16: 'TXT',
  28: 'AAAA',
  33: 'SRV',
  65: 'HTTPS',
  255: 'ANY',
}

/** One line of EVE, without its end. */
export function eveLine(event: Event, alert: Alert): string {
  const { signature, toServer, application } = alert
  const { action, gid, sid, rev, msg, category, severity, metadata } = signature
  const hasPorts = event.protocol === 6 || event.protocol === 17
  return JSON.stringify({
    timestamp: timestamp(event.timeMs),
    flow_id: event.flow,
    event_type: 'alert',
    src_ip: address(event.source),
    ...(hasPorts && { src_port: event.sourcePort }),
    dest_ip: address(event.destination),
    ...(hasPorts && { dest_port: event.destinationPort }),
    proto: PROTOCOLS[event.protocol] ?? String(event.protocol).padStart(3, '0'),
    alert: {
      action: action === 'alert' ? 'allowed' : 'blocked',
      gid,
      signature_id: sid,
      rev,
      signature: msg,
      category,
      severity,
      ...(Object.keys(metadata).length > 0 && { metadata }),
    },
    ...layer(alert),
    ...(application !== undefined && { app_proto: application }),
    ...(DIRECTED.includes(event.protocol) && { direction: toServer ? 'to_server' : 'to_client' }),
  })
}

function layer({ application, request, hello, question }: Alert): object {
  if (application === 'http' && request !== undefined) {
    const value = (name: string) => request.headers.find(([one]) => one.toLowerCase() === name)?.[1]
    const [, hostname = request.host || undefined, port] = /^(.*?)(?::(\d{1,5}))?$/.exec(value('host') ?? '') ?? []
    return {
      http: {
        hostname: hostname || undefined,
        http_port: port === undefined ? undefined : Number(port),
        url: request.target,
        http_user_agent: value('user-agent'),
        http_refer: value('referer'),
        http_method: request.method,
        protocol: `HTTP/${request.version}`,
      },
    }
  }
  if (application === 'tls' && hello !== undefined) return { tls: { sni: hello.serverName } }
  if (application === 'dns' && question !== undefined)
    return {
      dns: { query: [{ type: 'query', rrname: question.raw, rrtype: TYPES[question.type] ?? String(question.type) }] },
    }
  return {}
}

/** IPv6 with all its digits, as Suricata writes it. */
function address(text: string): string {
  if (!text.includes(':')) return text
  return ipaddr.IPv6.parse(text)
    .parts.map(part => part.toString(16).padStart(4, '0'))
    .join(':')
}

/** As Suricata writes it in UTC: `2023-11-14T22:13:20.004000+0000`. */
function timestamp(timeMs: number): string {
  const micros = Math.round((timeMs % 1) * 1000)
  const text = isoTime(Math.floor(timeMs))
  return `${text.slice(0, -1)}${String(Math.min(micros, 999)).padStart(3, '0')}+0000`
}
