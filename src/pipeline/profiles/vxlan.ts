// Profile `vxlan`: RFC 7348, no metadata.

import * as vxlan from '../../wire/vxlan.ts'
import type { Profile } from '../profile.ts'

export const VXLAN: Profile = {
  name: 'vxlan',
  summary: 'VXLAN as standardised',
  kind: 'vxlan',
  inner: 'ethernet',
  port: vxlan.PORT,
  vnis: { min: 0, max: 0xffffff, usual: 1 },
  outer: [4, 6],
  settings: {},
  metadata: [],
  returns: ['the same VNI, outer addresses swapped, both UDP ports kept'],
  sources: ['RFC 7348'],
  tunnel: () => ({}),
  headerLength: () => vxlan.HEADER,
  vni: vxlan.vni,

  /** RFC 7348 section 5: every bit but I and the VNI is sent as zero. */
  echo(b, at) {
    vxlan.write(b, at, vxlan.vni(b, at))
  },

  reverse() {},
}
