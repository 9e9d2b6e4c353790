// Profile `aws-gwlb`: AWS Gateway Load Balancer. IP packets in GENEVE over IPv4, and three options that must come back as they were.

import * as geneve from '../../wire/geneve.ts'
import type { Profile } from '../profile.ts'
import { hexSetting, hexWords } from '../setting.ts'
import { optionHead } from '../tunnel.ts'

const CLASS = 0x0108
const ENDPOINT = 1
const ATTACHMENT = 2
const COOKIE = 3

/** Of an inner packet, either way. */
const LARGEST = 8500

export const AWS_GWLB: Profile = {
  name: 'aws-gwlb',
  summary: 'AWS Gateway Load Balancer: IP packets in GENEVE, three options of AWS',
  kind: 'geneve',
  inner: 'ip',
  port: geneve.PORT,
  vnis: { fixed: 0 },
  outer: [4],
  settings: {
    endpointId: hexSetting(8, '0000000000000001', 'Of the Gateway Load Balancer endpoint.'),
    attachmentId: hexSetting(8, '0000000000010000', "The visible attachment's; the pod's number is added to it."),
  },
  metadata: [
    'class 0x0108, type 1: endpoint id, 8 bytes',
    'class 0x0108, type 2: attachment id, 8 bytes',
    'class 0x0108, type 3: flow cookie, 4 bytes',
  ],
  returns: [
    'the same GENEVE bytes, outer addresses swapped, both UDP ports kept',
    'a packet whose cookie is not that of its flow is dropped (flow-cookie)',
    `a packet of more than ${LARGEST} bytes vanishes, and nobody is told (returned-too-big)`,
    'flows end after 350 s (TCP) and 120 s (all else) without packets',
    'a target is healthy while it accepts TCP on port 80: every 10 s, 5 s time to answer',
  ],
  sources: [
    'https://aws.amazon.com/blogs/networking-and-content-delivery/integrate-your-custom-logic-or-appliance-with-aws-gateway-load-balancer/',
    'https://docs.aws.amazon.com/elasticloadbalancing/latest/gateway/gateway-load-balancers.html',
  ],

  tunnel({ endpointId, attachmentId }) {
    const words = [
      optionHead(CLASS, ENDPOINT, 8),
      ...hexWords(endpointId),
      optionHead(CLASS, ATTACHMENT, 8),
      ...hexWords(attachmentId),
      optionHead(CLASS, COOKIE, 4),
      0,
    ]
    return { inner: 'ip', largest: LARGEST, options: { words, attachmentAt: 5, cookieAt: 7, mustReturn: true } }
  },
  headerLength: geneve.headerLength,
  vni: geneve.vni,
  echo() {},
  reverse() {},
}
