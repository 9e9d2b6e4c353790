#!/usr/bin/env node
// The entry of the self-contained plugin: a container runtime calls it without arguments, people with some.

import { exitStatus } from '../errors.ts'

const words = process.argv.slice(2)

if (words.length === 0) import('../cni/main.ts').then(({ runPlugin }) => runPlugin())
else {
  import('./cni-words.ts')
    .then(({ runCni }) => runCni(words))
    .then(
      status => {
        process.exitCode = status
      },
      error => {
        console.error(`detour-cni: ${error.message}`)
        process.exitCode = exitStatus(error)
      },
    )
}
