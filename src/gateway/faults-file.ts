// A schedule of faults as people write it: a YAML list, `- { at: 5s, for: 10s, fault: drop, share: 10%, flows: { port: 80 } }`.

import { z } from 'zod'
import { oneOf, readYaml, section, such } from '../control/yaml.ts'
import {
  FAULT_NAMES,
  type Fault,
  FLOW_SETTINGS,
  faultOf,
  flawOf,
  MAX_FAULTS,
  SETTING_NAMES,
  SETTINGS,
  type SettingName,
  type Settings,
} from '../device/faults.ts'

type Written = Partial<Record<SettingName, string | number>>

const flowSettings: readonly SettingName[] = FLOW_SETTINGS

const schema = z
  .array(
    section({
      fault: oneOf(FAULT_NAMES),
      ...settingsOf(SETTING_NAMES.filter(name => !flowSettings.includes(name))),
      flows: section(settingsOf(flowSettings)).optional(),
    }).superRefine((entry, { addIssue }) => {
      const flaw = flawOf(entry.fault, settings(entry))
      if (flaw === undefined) return
      const { setting, allowed } = flaw
      const path = flowSettings.includes(setting) ? ['flows', setting] : [setting]
      addIssue({ code: 'custom', path, message: `allowed: ${allowed}` })
    }),
    { error: 'allowed: a list of faults' },
  )
  .max(MAX_FAULTS, { error: `allowed: ${MAX_FAULTS} faults at most` })

/** Reads a schedule; faults without a seed of their own get `seed`. Throws DetourError that names file, line and field. */
export function readFaults(file: string, seed: number): Fault[] {
  return readYaml(schema, file).map((entry, id) => ({ ...faultOf(entry.fault, settings(entry), seed), id }))
}

function settingsOf(names: readonly SettingName[]) {
  const shape: Partial<Record<SettingName, z.ZodOptional<z.ZodType<string | number>>>> = {}
  for (const name of names) {
    const { allowed, read } = SETTINGS[name]
    const valid = (value: unknown) => ['string', 'number'].includes(typeof value) && read(String(value)) !== undefined
    shape[name] = such<string | number>(allowed, valid).optional()
  }
  return shape as Record<SettingName, z.ZodOptional<z.ZodType<string | number>>>
}

/** The values of checked settings. */
function settings({ fault: _, flows, ...own }: Written & { fault: string; flows?: Written }): Settings {
  const written = Object.entries({ ...own, ...flows }).filter(([, value]) => value !== undefined)
  return Object.fromEntries(
    written.map(([name, value]) => [name, SETTINGS[name as SettingName].read(String(value))]),
  ) as Settings
}
