// Profile `azure-gwlb`: Azure Gateway Load Balancer. Two VXLAN tunnels: what arrives from outside comes by the external one and
// goes on by the internal one, what leaves the other way about.

import { setU16, u16 } from '../../wire/bytes.ts'
import * as udp from '../../wire/udp.ts'
import * as vxlan from '../../wire/vxlan.ts'
import type { Profile } from '../profile.ts'
import { integerSetting } from '../setting.ts'
import type { TunnelConfig } from '../tunnel.ts'

/** Of the UDP header. */
const DESTINATION_PORT = 2

export const AZURE_GWLB: Profile = {
  name: 'azure-gwlb',
  summary: 'Azure Gateway Load Balancer: two VXLAN tunnels, one a direction',
  kind: 'vxlan',
  inner: 'ethernet',
  port: 10800,
  vnis: { min: 0, max: 0xffffff, usual: 800 },
  outer: [4, 6],
  settings: {
    externalPort: integerSetting(1, 65535, 10801, 'UDP port of the external tunnel; port is that of the internal one.'),
    externalVni: integerSetting(0, 0xffffff, 801, 'VNI of the external tunnel; vni is that of the internal one.'),
  },
  metadata: ['which of the two tunnels a packet comes by is its direction'],
  returns: [
    'on the other tunnel: its port and its VNI; outer addresses swapped, the source port kept',
    'both ports are listened on, which rung udp-socket cannot',
    'a packet on a port with the VNI of the other tunnel is dropped (unknown-vni)',
  ],
  sources: [
    'https://learn.microsoft.com/en-us/azure/load-balancer/gateway-overview',
    'https://blog.cloudtrooper.net/2021/11/11/what-language-does-the-azure-gateway-load-balancer-speak/',
  ],
  tunnel: ({ externalPort, externalVni }) => ({ arriving: { port: Number(externalPort), vni: Number(externalVni) } }),
  headerLength: () => vxlan.HEADER,
  vni: vxlan.vni,
  echo: change,
  reverse: change,
}

/** Makes a packet of one tunnel one of the other. */
function change(b: Uint8Array, at: number, { port, vni, arriving }: TunnelConfig): void {
  if (arriving === undefined) return
  const to = at - udp.HEADER + DESTINATION_PORT
  const isExternal = u16(b, to) === arriving.port
  setU16(b, to, isExternal ? port : arriving.port)
  vxlan.write(b, at, isExternal ? vni : arriving.vni)
}
