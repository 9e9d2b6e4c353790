// Settings of a profile: what may be configured beyond what every tunnel has. Plain descriptions, which control/config checks.

/** Values by name, as people give them. */
export type Settings = Readonly<Record<string, string | number>>

export interface Setting {
  readonly describe: string
  /** What is allowed, for errors: `an integer from 1 to 7`. */
  readonly allowed: string
  /** The value when none is given. */
  readonly usual: string | number
  valid(value: unknown): boolean
}

/** An integer within bounds. */
export function integerSetting(min: number, max: number, usual: number, describe: string): Setting {
  const valid = (value: unknown) => Number.isInteger(value) && Number(value) >= min && Number(value) <= max
  return { describe, allowed: `an integer from ${min} to ${max}`, usual, valid }
}

/** So many bytes as hexadecimal digits. */
export function hexSetting(bytes: number, usual: string, describe: string): Setting {
  const form = new RegExp(`^[0-9a-fA-F]{${bytes * 2}}$`)
  const valid = (value: unknown) => typeof value === 'string' && form.test(value)
  return { describe, allowed: `${bytes * 2} hexadecimal digits, in quotes`, usual, valid }
}

/** One of some words. */
export function wordSetting(words: readonly string[], describe: string): Setting {
  return { describe, allowed: words.join(', '), usual: words[0], valid: value => words.includes(String(value)) }
}

/** The 32-bit words, in network order, of a hexSetting's value. */
export function hexWords(value: string | number): number[] {
  return String(value)
    .match(/.{8}/g)!
    .map(word => Number.parseInt(word, 16) | 0)
}
