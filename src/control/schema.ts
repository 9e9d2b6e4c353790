// control.proto as protobufjs has it. The build of the self-contained plugin puts the parsed form in this module's place.

import { readFileSync } from 'node:fs'
import protobuf from 'protobufjs'
import { packageRoot } from './package.ts'

export const schema = protobuf.parse(readFileSync(new URL('src/control/control.proto', packageRoot), 'utf8')).root
