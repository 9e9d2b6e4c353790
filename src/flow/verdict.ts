// What is decided for a flow. The node knows PASS, STEER and DROP; the gateway ALLOW, DROP, RESET and FORBID (a request was answered with 403).

/** Verdicts by name; the numbers live in flow tables and in compiled policies, never in files. */
export const VERDICT = { PASS: 0, STEER: 1, DROP: 2, ALLOW: 3, RESET: 4, FORBID: 5 } as const

const names = Object.keys(VERDICT).map(name => name.toLowerCase())

/** The word that people read and configure: `steer`. */
export function verdictName(verdict: number): string {
  return names[verdict] ?? `verdict ${verdict}`
}
