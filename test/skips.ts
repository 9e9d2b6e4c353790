// Says at the end of a run what was skipped and why: the reasons stand in the titles, of which only those that ran are shown.

import type { Reporter, TestCase, TestModule, TestSuite } from 'vitest/node'

/** Prints a line for each reason in "(skipped: reason)" or "(needs something)" at the end of titles; nothing when nothing was skipped. */
export class Skips implements Reporter {
  onTestRunEnd(modules: readonly TestModule[]): void {
    const reasons = new Map<string, number>()
    for (const module of modules) {
      for (const test of module.children.allTests('skipped')) {
        const reason = reasonOf(test)
        if (reason !== undefined) reasons.set(reason, (reasons.get(reason) ?? 0) + 1)
      }
    }
    for (const [reason, tests] of [...reasons].sort(([, a], [, b]) => b - a)) {
      process.stdout.write(`\n ${tests} test${tests === 1 ? '' : 's'} skipped: ${reason}`)
    }
    if (reasons.size > 0) process.stdout.write('\n')
  }
}

function reasonOf(entry: TestCase | TestSuite | TestModule): string | undefined {
  if (entry.type === 'module') return undefined
  const found = /^.* \((?:skipped: (.+)|(needs .+))\)$/.exec(entry.name)
  return found === null ? reasonOf(entry.parent) : (found[1] ?? found[2])
}
