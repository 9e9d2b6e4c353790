// How much the compiler inlines. A stage is a loop over small functions, and V8 stops inlining at 920 bytes of bytecode,
// halfway through most stages, and at functions of more than 460; what is left outside is compiled for any pool instead of
// this thread's.

import { setFlagsFromString } from 'node:v8'

/** Lets the compiler inline whole stages (there and back in memory: 108 ns a packet instead of 144). For the whole process, at any time before packets flow. */
export function inlineStages(): void {
  setFlagsFromString('--max-inlined-bytecode-size=1000')
  setFlagsFromString('--max-inlined-bytecode-size-cumulative=4000')
}
