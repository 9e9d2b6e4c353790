// Profile `pan-cni`: the CNI plugin of Palo Alto Networks' container firewall. VXLAN on a port of its own; the VNI is the
// cluster, the outer source the pod.

import type { Profile } from '../profile.ts'
import { VXLAN } from './vxlan.ts'

export const PAN_CNI: Profile = {
  ...VXLAN,
  name: 'pan-cni',
  summary: "Palo Alto Networks' CNI: VXLAN from the pod's own address",
  port: 6080,
  vnis: { min: 1, max: 2048 },
  metadata: ['the VNI is the number of the cluster', "the outer source is the pod's address"],
  returns: [
    "to the pod's address, the same VNI, both UDP ports kept",
    "all UDP to this port that arrives at the node's uplink is taken for the tunnel's; not on rung udp-socket",
    "needs an underlay that carries pods' addresses; a pod without an address of the underlay's IP version has the node's",
  ],
  sources: ['as deployed; the vendor has published no specification'],
  tunnel: () => ({ podSource: true }),
}
