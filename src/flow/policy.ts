// Policy: an ordered list of rules over a flow's first packet; the first that matches decides.

/** A rule as people write it. What is left out matches everything. */
export interface PolicyRule {
  name?: string
  /** Addresses or CIDR blocks of the sender of the first packet. */
  from?: string[]
  to?: string[]
  protocol?: 'tcp' | 'udp' | 'icmp' | 'icmpv6' | number
  /** Ports or ranges `'1024-65535'`. */
  sourcePorts?: (number | string)[]
  /** Destination ports. */
  ports?: (number | string)[]
  /** A number of VERDICT. */
  verdict: number
}

/** A compiled policy: plain data, passes through workerData. */
export interface PolicyHandle {
  words: Int32Array
  names: string[]
  otherwise: number
}

/** Compiles rules; `where` names them in errors. Throws DetourError bad-config. */
export function compile(rules: PolicyRule[], otherwise: number, where = 'rules'): PolicyHandle

export declare class Policy {
  constructor(handle: PolicyHandle)
  /** Index of the first rule that matches the first packet of a flow, or -1. */
  match(keys: Int32Array, at: number, reversed: number): number
  /** The verdict of a rule; of -1, the default. */
  verdict(rule: number): number
  name(rule: number): string
}
