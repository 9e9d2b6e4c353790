// Profile `geneve`: RFC 8926, Ethernet inside, options echoed byte for byte.

import * as geneve from '../../wire/geneve.ts'
import type { Profile } from '../profile.ts'
import { METADATA } from '../tunnel.ts'

export const GENEVE: Profile = {
  name: 'geneve',
  summary: 'GENEVE as standardised, Ethernet frames inside',
  kind: 'geneve',
  inner: 'ethernet',
  port: geneve.PORT,
  vnis: { min: 0, max: 0xffffff, usual: 1 },
  outer: [4, 6],
  settings: {},
  metadata: [
    'class 0xfff0 (experimental), type 1, not critical: attachment 16 bits, direction 8, zero 8, flow cookie 32',
  ],
  returns: ['the same header and options, outer addresses swapped, both UDP ports kept', 'options may be left out'],
  sources: ['RFC 8926'],
  tunnel: () => ({}),
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
