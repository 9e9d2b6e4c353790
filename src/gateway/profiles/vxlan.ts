// Profile `vxlan`: RFC 7348, no metadata.

import * as vxlan from '../../wire/vxlan.ts'
import type { Profile } from '../profile.ts'

export const VXLAN: Profile = {
  name: 'vxlan',
  kind: 'vxlan',
  port: vxlan.PORT,
  headerLength: () => vxlan.HEADER,
  vni: vxlan.vni,

  /** RFC 7348 section 5: every bit but I and the VNI is sent as zero. */
  echo(b, at) {
    vxlan.write(b, at, vxlan.vni(b, at))
  },

  reverse() {},
}
