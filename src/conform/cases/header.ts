// Cases about the tunnel header itself: RFC 8926 section 3.4, RFC 7348 section 5.

import type { Parts } from '../answer.ts'
import { type Case, onlyGeneve, onlyVxlan } from '../case.ts'
import { vniUnchanged } from '../judges.ts'
import type { Probe } from '../probe.ts'

/** Reserved bits of each header: position and bits. */
const RESERVED = {
  geneve: [
    [1, 0x3f],
    [7, 0xff],
  ],
  vxlan: [
    [0, 0xf7],
    [1, 0xff],
    [2, 0xff],
    [3, 0xff],
    [7, 0xff],
  ],
} as const

const setReserved = (kind: keyof typeof RESERVED) => (tunnel: Uint8Array) => {
  for (const [at, bits] of RESERVED[kind]) tunnel[at] |= bits
}

/** Of which kind the reserved bits must be zero. */
const reservedZero =
  (kind: keyof typeof RESERVED) =>
  (_: Probe, { tunnel }: Parts) => {
    const left = RESERVED[kind].filter(([at, bits]) => (tunnel[at] & bits) !== 0)
    if (left.length === 0) return undefined
    return left.map(([at]) => `byte ${at} of the tunnel header came back 0x${tunnel[at].toString(16)}`).join(', ')
  }

export const HEADER_CASES: readonly Case[] = [
  {
    name: 'header-vni-returned',
    section: 'RFC 8926 section 3.4, RFC 7348 section 5',
    expected: 'the VNI of a packet goes back with it, or that of the other tunnel where there are two',
    sends: make => make.vnis.map(vni => make.plain(make.flow(), { vni })),
    judge: vniUnchanged,
  },
  {
    name: 'header-version-dropped',
    section: 'RFC 8926 section 3.4',
    expected: 'a packet of another version than 0 is dropped',
    without: onlyGeneve,
    sends: make =>
      [1, 2, 3].map(version =>
        make.plain(make.flow(), {
          fate: 'nothing',
          edit: tunnel => {
            tunnel[0] |= version << 6
          },
        }),
      ),
  },
  {
    name: 'header-control-dropped',
    section: 'RFC 8926 section 3.4',
    expected: 'the payload of a control packet (O) is never forwarded',
    without: onlyGeneve,
    sends: make => [
      make.plain(make.flow(), {
        fate: 'nothing',
        edit: tunnel => {
          tunnel[1] |= 0x80
        },
      }),
    ],
  },
  {
    name: 'header-reserved-ignored',
    section: 'RFC 8926 section 3.4, RFC 7348 section 5',
    expected: 'reserved bits are ignored on receipt',
    sends: make => [make.plain(make.flow(), { edit: setReserved(make.profile.kind) })],
  },
  {
    name: 'header-reserved-zero',
    section: 'RFC 8926 section 3.4',
    expected: 'reserved bits are sent as zero, whatever was received',
    without: target =>
      onlyGeneve(target) ?? (target.profile.headerKept ? 'the profile wants the header back as it was' : undefined),
    sends: make => [make.plain(make.flow(), { fate: 'either', edit: setReserved('geneve') })],
    judge: reservedZero('geneve'),
  },
  {
    name: 'header-reserved-zero-vxlan',
    section: 'RFC 7348 section 5',
    expected: 'reserved bits are sent as zero, whatever was received',
    without: onlyVxlan,
    sends: make => [make.plain(make.flow(), { fate: 'either', edit: setReserved('vxlan') })],
    judge: reservedZero('vxlan'),
  },
  {
    name: 'header-flag-dropped',
    section: 'RFC 7348 section 5',
    expected: 'a packet without the I flag is dropped',
    without: onlyVxlan,
    sends: make =>
      [0x00, 0xf7].map(flags =>
        make.plain(make.flow(), {
          fate: 'nothing',
          edit: tunnel => {
            tunnel[0] = flags
          },
        }),
      ),
  },
]
