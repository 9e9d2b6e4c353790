// A device: something Ethernet frames are received from and transmitted to.
//
// A device states its capabilities. What a frame needs and the device lacks is done by pipeline/complete just before
// transmit, nowhere else; so nothing above knows which device a packet leaves by.

import type { Batch } from '../memory/batch.ts'

/** What a device does for the frames it transmits; the bits are those of TUNSETOFFLOAD (linux/if_tun.h). */
export const CAPABILITY = {
  /** Completes NEEDS_CHECKSUM. */
  CHECKSUM: 1,
  TSO4: 2,
  TSO6: 4,
  TSO_ECN: 8,
  USO4: 0x20,
  USO6: 0x40,
  /** Takes tunnelled super-packets whole. */
  TUNNEL_GSO: 0x80,
  /** Computes the outer UDP checksum of each of their segments. */
  TUNNEL_GSO_CHECKSUM: 0x100,
} as const

/** CAPABILITY bits by name, for people. */
export function capabilityNames(capabilities: number): string[] {
  return Object.entries(CAPABILITY)
    .filter(([, bit]) => (capabilities & bit) !== 0)
    .map(([name]) => name.toLowerCase().replaceAll('_', '-'))
}

export interface Device {
  /** What people see in tables: `tap:dtr0`, `pcap:in.pcap`. */
  readonly name: string
  /** CAPABILITY bits. */
  readonly capabilities: number
  /** A file descriptor that polls readable when receive has something; -1 when there is none to wait for. */
  readonly fd: number
  /** True when nothing will ever come again (the end of a file). */
  readonly exhausted: boolean
  /** Transmitted frames that still wait for room, where the device holds them; receive sends them on. */
  readonly held?: number
  /** True while it waits for frames to come back, which no descriptor announces: receive is to be called now and then. */
  readonly wanting?: boolean
  /** True when the last receive took all that was there, where the device can tell: `fd` says when there is more. */
  readonly drained?: boolean

  /**
   * Appends received frames to the batch, as many as are there, as the batch has room for and as one breath should
   * carry, and returns how many. Gives the frames: start, length, time and the offload fields are set. Never blocks.
   */
  receive(batch: Batch): number

  /** Takes every frame of the batch and empties it: sent and freed, or counted as dropped and freed. */
  transmit(batch: Batch): void

  /** Lets go of what the device holds. */
  close(): void
}
