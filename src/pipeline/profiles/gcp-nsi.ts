// Profile `gcp-nsi`: Google Cloud's Network Security Integration, in-band. IP packets in GENEVE, and three options of Google's.

import * as geneve from '../../wire/geneve.ts'
import type { Profile } from '../profile.ts'
import { hexSetting, hexWords, integerSetting, wordSetting } from '../setting.ts'
import { optionHead } from '../tunnel.ts'

const CLASS = 0x0132
const NETWORK = 1
const ENDPOINT = 2
const SECURITY_PROFILE = 3

export const GCP_NSI: Profile = {
  name: 'gcp-nsi',
  summary: "Google Cloud's Network Security Integration: IP packets in GENEVE, three options of Google's",
  kind: 'geneve',
  inner: 'ip',
  port: geneve.PORT,
  vnis: { fixed: 0 },
  outer: [4, 6],
  settings: {
    networkId: integerSetting(0, 0x0fffffff, 1, 'Of the network that packets belong to, 28 bits.'),
    endpointId: hexSetting(8, '0000000000010000', "Of the intercept endpoint; the pod's number is added to it."),
    profileId: hexSetting(8, '0000000000000001', 'Of the security profile.'),
    echo: wordSetting(
      ['options', 'none'],
      'What the gateway returns: the options as they came, or none (not documented what Google expects).',
    ),
  },
  metadata: [
    'class 0x0132, type 1: network id 28 bits, reserved 3 bits, direction 1 bit (1 leaves the pod)',
    'class 0x0132, type 2: endpoint id, 8 bytes',
    'class 0x0132, type 3: security profile id, 8 bytes',
  ],
  returns: [
    'outer addresses swapped, both UDP ports kept',
    'options come back or not (setting echo); the flow is found by the inner packet either way',
  ],
  sources: [
    'https://docs.cloud.google.com/network-security-integration/docs/understand-geneve',
    'https://docs.cloud.google.com/network-security-integration/docs/in-band/in-band-integration-overview',
  ],

  tunnel({ networkId, endpointId, profileId, echo }) {
    const words = [
      optionHead(CLASS, NETWORK, 4),
      Number(networkId) << 4,
      optionHead(CLASS, ENDPOINT, 8),
      ...hexWords(endpointId),
      optionHead(CLASS, SECURITY_PROFILE, 8),
      ...hexWords(profileId),
    ]
    const returnsOptions = echo !== 'none'
    return { inner: 'ip', returnsOptions, options: { words, attachmentAt: 4, leavingAt: 1, mustReturn: false } }
  },
  headerLength: geneve.headerLength,
  vni: geneve.vni,

  /** RFC 8926 section 3.4: reserved bits are sent as zero, whatever was received. */
  echo(b, at) {
    b[at + 1] &= 0xc0
    b[at + geneve.HEADER - 1] = 0
  },

  reverse(b, at) {
    const option = geneve.findOption(b, at, CLASS, NETWORK)
    if (option !== 0 && geneve.optionLength(b, option) === 4) b[option + geneve.OPTION + 3] ^= 1
  },
}
