// The text of control.proto. The build of the single-file plugin puts the text itself in this module's place.

import { readFileSync } from 'node:fs'
import { packageRoot } from './package.ts'

export const schemaText = readFileSync(new URL('src/control/control.proto', packageRoot), 'utf8')
