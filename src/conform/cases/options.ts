// Cases about GENEVE options: RFC 8926 section 3.5.

import * as geneve from '../../wire/geneve.ts'
import { AWS_APPLIANCE, onlyGeneve, type PacketCase, whereReturned } from '../case.ts'
import { optionsUnchanged } from '../judges.ts'
import type { Maker } from '../probe.ts'
import { concat, option } from '../profile.ts'

/** Classes that nobody has registered for a product: the experimental range of section 7, of which 0xfff0 is ours. */
const UNKNOWN = 0xfffe
const data = (bytes: number) => Array.from({ length: bytes }, (_, i) => (i * 37 + 1) & 0xff)
const CRITICAL = geneve.OPTION_CRITICAL

/** The metadata of the profile with further options behind it. */
function behind(make: Maker, ...more: Uint8Array[]) {
  const flow = make.flow()
  return { flow, options: concat(make.profile.metadata(flow, false), ...more) }
}

/** The most options there can be: 252 bytes with the metadata. */
function longest(make: Maker) {
  const { flow, options } = behind(make)
  const room = geneve.MAX - geneve.HEADER - options.length
  const big = Math.min(room - geneve.OPTION, geneve.OPTION_DATA_MAX)
  const rest = room - geneve.OPTION - big
  const filling = [option(UNKNOWN, 1, data(big))]
  if (rest >= geneve.OPTION) filling.push(option(UNKNOWN, 2, data(rest - geneve.OPTION)))
  return { flow, options: concat(options, ...filling) }
}

export const OPTION_CASES: readonly PacketCase[] = [
  {
    name: 'options-returned',
    section: `RFC 8926 section 3.5; ${AWS_APPLIANCE}`,
    expected: 'the options that came with a packet go back with it, byte for byte, in both directions',
    without: whereReturned,
    sends: make => {
      const flow = make.flow()
      return [make.plain(flow), make.plain(flow, { reply: true })]
    },
    judge: optionsUnchanged,
  },
  {
    name: 'options-unknown-returned',
    section: 'RFC 8926 section 3.5',
    expected: 'options that are unknown and not critical are kept, in order, also empty ones',
    without: whereReturned,
    sends: make => {
      const more = behind(
        make,
        option(UNKNOWN, 0x01, data(8)),
        option(0x0100, 0x7f, []),
        option(UNKNOWN, 0x02, data(4)),
      )
      return [make.plain(more.flow, { options: more.options })]
    },
    judge: optionsUnchanged,
  },
  {
    name: 'options-longest-returned',
    section: 'RFC 8926 sections 3.4 and 3.5',
    expected: '252 bytes of options are kept',
    without: whereReturned,
    sends: make => {
      const { flow, options } = longest(make)
      return [make.plain(flow, { options })]
    },
    judge: optionsUnchanged,
  },
  {
    name: 'options-reserved-ignored',
    section: 'RFC 8926 section 3.5',
    expected: 'the three reserved bits of an option are ignored',
    without: onlyGeneve,
    sends: make => {
      const { flow, options } = behind(make, option(UNKNOWN, 0x03, data(4)))
      return [
        make.plain(flow, {
          options,
          edit: tunnel => {
            tunnel[geneve.HEADER + options.length - 8 + 3] |= 0xe0
          },
        }),
      ]
    },
  },
  {
    name: 'options-critical-dropped',
    section: 'RFC 8926 section 3.5',
    expected: 'a packet with an unknown critical option is dropped, wherever the option stands',
    without: onlyGeneve,
    sends: make => {
      const critical = option(UNKNOWN, CRITICAL | 0x05, data(4))
      const last = behind(make, critical)
      const first = { flow: last.flow, options: concat(critical, make.profile.metadata(last.flow, false)) }
      return [last, first].map(({ flow, options }) => make.plain(flow, { options, critical: true, fate: 'nothing' }))
    },
  },
  {
    name: 'options-overrun-dropped',
    section: 'RFC 8926 section 3.5',
    expected: 'a packet whose option lengths do not add up is dropped without a word, and the next one is served',
    without: onlyGeneve,
    sends: make =>
      [1, 2, 31].map(words => {
        const { flow, options } = behind(make, option(UNKNOWN, 0x06, []))
        return make.plain(flow, {
          options,
          fate: 'nothing',
          edit: tunnel => {
            tunnel[geneve.HEADER + options.length - 1] = words
          },
        })
      }),
  },
  {
    name: 'options-beyond-packet-dropped',
    section: 'RFC 8926 section 3.4',
    expected: 'a packet that ends before its options do is dropped, and the next one is served',
    without: onlyGeneve,
    sends: make =>
      [0, 4, 10].map(bytes => {
        const { flow, options } = longest(make)
        return make.plain(flow, { options, fate: 'nothing', cut: geneve.HEADER + bytes })
      }),
  },
]
