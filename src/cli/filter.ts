// Filters as people write them: `port=443`, `verdict=drop`; each option adds a field.

import { InvalidArgumentError } from 'commander'
import { didYouMean } from '../control/suggest.ts'

/** What must match; flows and packets have the same fields, but for the verdicts. */
export interface Filter<Verdict extends string> {
  address?: string
  attachment?: string
  port?: number
  protocol?: number
  verdict?: Verdict
}

/** A parser for commander that takes these verdicts. */
export function filterParser<Verdict extends string>(verdicts: readonly Verdict[]) {
  const fields: Record<string, (value: string) => Filter<Verdict> | undefined> = {
    address: address => ({ address }),
    attachment: attachment => ({ attachment }),
    port: value => (isNumber(value, 0xffff) ? { port: Number(value) } : undefined),
    protocol(value) {
      const protocol = { icmp: 1, tcp: 6, udp: 17, icmp6: 58 }[value]
      return protocol !== undefined ? { protocol } : isNumber(value, 255) ? { protocol: Number(value) } : undefined
    },
    verdict(value) {
      const verdict = verdicts.find(known => known === value)
      return verdict && { verdict }
    },
  }
  const names = Object.keys(fields)
  return (word: string, before: Filter<Verdict> = {}): Filter<Verdict> => {
    const at = word.indexOf('=')
    const name = word.slice(0, Math.max(0, at))
    if (!names.includes(name))
      throw new InvalidArgumentError(`Allowed: FIELD=VALUE with ${names.join(', ')}${didYouMean(name, names)}`)
    const filter = fields[name](word.slice(at + 1))
    if (filter === undefined) throw new InvalidArgumentError(`${word.slice(at + 1)} is no ${name}.`)
    return { ...before, ...filter }
  }
}

const isNumber = (value: string, most: number) => /^\d{1,5}$/.test(value) && Number(value) <= most
