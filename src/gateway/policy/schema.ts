// Schemas that the kinds of policy have in common.

import { isIP } from 'node:net'
import { z } from 'zod'
import { section, text } from '../../control/yaml.ts'
import { type Block, blockOf, bytesOf } from './model.ts'

/** A mapping that knows all its keys; of what is null it is taken to say nothing, as Kubernetes takes it. */
export function fields<Shape extends z.ZodRawShape>(shape: Shape) {
  return z.preprocess(withoutNulls, section(shape))
}

function withoutNulls(value: unknown): unknown {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return value
  return Object.fromEntries(Object.entries(value).filter(([, one]) => one !== null))
}

const cidr = () => text('a CIDR block like 10.0.0.0/8 or fd00::/8', isCidr)

/** A CIDR block. */
export const block = cidr().transform(blockOf)

/** A CIDR block with exceptions, which lie in it. */
export const blockWithout = fields({
  cidr: cidr(),
  except: z.array(cidr(), { error: 'allowed: a list' }).default([]),
})
  .refine(({ cidr, except }) => except.every(each => lies(each, cidr)), {
    path: ['except'],
    error: 'allowed: blocks within cidr',
  })
  .transform(({ cidr, except }): Block => {
    const whole = blockOf(cidr)
    const holes = except.map(blockOf)
    return address => whole(address) && !holes.some(hole => hole(address))
  })

// NB: ipaddr.js also takes 10.1/16 and 010.0.0.0/8, which others read otherwise.
function isCidr(value: string): boolean {
  const [address, bits, ...more] = value.split('/')
  const family = address.includes('%') ? 0 : isIP(address)
  return family !== 0 && more.length === 0 && /^\d{1,3}$/.test(bits) && Number(bits) <= (family === 4 ? 32 : 128)
}

/** Whether one block is a part of another, and not all of it. */
function lies(inner: string, outer: string): boolean {
  const [[base, bits], [, most]] = [inner.split('/'), outer.split('/')]
  return blockOf(outer)(bytesOf(base)) && Number(bits) > Number(most)
}
