// How the report writes numbers and text.

/** Makes text safe between tags and inside quoted attributes. */
export function escapeHtml(text: string): string {
  return text.replace(/[&<>"']/g, character => `&#${character.charCodeAt(0)};`)
}

/** 1,234 or 12.3 k or 4.56 M. */
export function compact(value: number): string {
  if (value < 10_000) return value.toLocaleString('en')
  const power = value < 1e6 ? 1 : value < 1e9 ? 2 : 3
  return `${(value / 1000 ** power).toPrecision(3)} ${['', 'k', 'M', 'G'][power]}`
}

/** Bytes in decimal units. */
export function bytes(value: number): string {
  return value < 10_000 ? `${value.toLocaleString('en')} B` : `${compact(value)}B`
}
