// Profile `geneve`: RFC 8926, Ethernet inside, options echoed byte for byte.

import { METADATA } from '../../pipeline/tunnel.ts'
import * as geneve from '../../wire/geneve.ts'
import type { Profile } from '../profile.ts'

export const GENEVE: Profile = {
  name: 'geneve',
  kind: 'geneve',
  port: geneve.PORT,
  headerLength: geneve.headerLength,
  vni: geneve.vni,

  /** RFC 8926 section 3.4: reserved bits are sent as zero, whatever was received. */
  echo(b, at) {
    geneve.write(
      b,
      at,
      geneve.optionsLength(b, at),
      false,
      geneve.critical(b, at),
      geneve.protocol(b, at),
      geneve.vni(b, at),
    )
  },

  /** Our own option tells the direction; what others mean by theirs is not known here. */
  reverse(b, at) {
    const option = geneve.findOption(b, at, METADATA.CLASS, METADATA.TYPE)
    if (option !== 0 && geneve.optionLength(b, option) === METADATA.DATA) b[option + geneve.OPTION + 2] ^= 1
  },
}
