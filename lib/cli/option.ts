export interface OptionDefinition {
  /** As it is typed, without the dashes. */
  readonly name: string;
  /** What stands for its value in the help; an option without one is a switch. */
  readonly value?: string;
  readonly description: string;
  /** Each further one adds a value. */
  readonly repeatable?: true;
}

export const JSON_OPTION: OptionDefinition = {
  name: 'json',
  description: 'print one JSON object on stdout instead of text',
};

export const HELP_OPTION: OptionDefinition = { name: 'help', description: 'show this help' };

export const DEVICE_OPTION: OptionDefinition = {
  name: 'device',
  value: 'name',
  description: 'auto (default), cpu, cuda or cuda:<index>',
};

/** Every option that a command takes: its own and those that all have. */
export function optionsOf(command: {
  readonly options: readonly OptionDefinition[];
}): readonly OptionDefinition[] {
  return [...command.options, JSON_OPTION, HELP_OPTION];
}

/** The name that the API gives an option: `group-size` → `groupSize`. cac does the same. */
export function camelCase(name: string): string {
  return name.replace(/-([a-z])/g, (_, letter: string) => letter.toUpperCase());
}
