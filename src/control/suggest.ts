// "Did you mean": the nearest known word to a mistyped one.

/** The known word nearest to `word`, or undefined when none is near enough to be meant. */
export function closest(word: string, known: readonly string[]): string | undefined {
  let best: string | undefined
  let least = Math.max(1, Math.floor(word.length * 0.4)) + 0.5
  for (const candidate of known) {
    const d = distance(word.toLowerCase(), candidate.toLowerCase())
    if (d < least) {
      least = d
      best = candidate
    }
  }
  return best
}

/** `; did you mean "ttl"?`, or nothing. */
export function didYouMean(word: unknown, known: readonly string[]): string {
  const near = typeof word === 'string' && word.length <= 64 ? closest(word, known) : undefined
  return near === undefined ? '' : `; did you mean "${near}"?`
}

/** Levenshtein's distance. */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1))
    }
    row = next
  }
  return row[b.length]
}
