// Label selectors (k8s.io/apimachinery meta/v1 LabelSelector).

import { z } from 'zod'
import { such } from '../../control/yaml.ts'
import type { Labels } from './inventory.ts'
import { fields } from './schema.ts'

const OPERATORS = ['In', 'NotIn', 'Exists', 'DoesNotExist'] as const

const expression = fields({
  key: z.string({ error: 'allowed: a label key' }),
  operator: z.enum(OPERATORS, { error: `allowed: ${OPERATORS.join(', ')}` }),
  values: z.array(z.string(), { error: 'allowed: a list of label values' }).default([]),
}).refine(({ operator, values }) => operator.endsWith('In') === values.length > 0, {
  path: ['values'],
  error: 'allowed: at least one value with In and NotIn, none with Exists and DoesNotExist',
})

/** The schema of a selector. */
export const selector = fields({
  matchLabels: such<Labels>('a mapping of labels to text', isLabels).default({}),
  matchExpressions: z.array(expression, { error: 'allowed: a list of expressions' }).default([]),
})

export type Selector = z.output<typeof selector>

// NB: zod's own mappings leave __proto__ out.
function isLabels(value: unknown): boolean {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return false
  return Object.values(value).every(one => typeof one === 'string')
}

/** Whether the labels are ones that the selector selects; an empty selector selects all. */
export function selects({ matchLabels, matchExpressions }: Selector, labels: Labels): boolean {
  const has = (key: string) => Object.hasOwn(labels, key)
  return (
    Object.entries(matchLabels).every(([key, value]) => has(key) && labels[key] === value) &&
    matchExpressions.every(({ key, operator, values }) => {
      if (operator === 'Exists') return has(key)
      if (operator === 'DoesNotExist') return !has(key)
      // NotIn also selects what does not have the label.
      return (has(key) && values.includes(labels[key])) === (operator === 'In')
    })
  )
}

/** Label keys that a selector asks for. */
export function keysOf({ matchLabels, matchExpressions }: Selector): string[] {
  return [...Object.keys(matchLabels), ...matchExpressions.map(({ key }) => key)]
}
