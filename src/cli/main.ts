#!/usr/bin/env node
// The entry: a container runtime's plugin, which must start fast, or the program with its subcommands.

const argv = process.argv.slice(2)
const asPlugin = process.env.CNI_COMMAND !== undefined && (argv.length === 0 || argv.join(' ') === 'cni')

if (asPlugin) (await import('../cni/main.ts')).runPlugin()
else await (await import('./program.ts')).runProgram(argv)
