{{- /* Written by `make schema`: the hosts of private registries, from the schema of the configuration. */ -}}
{{- define "ecr-injector.registryPattern" -}}
^[0-9]{12}\.(dkr\.ecr(-fips)?\.((([abd-z][a-z]|c[a-mo-z])|us-gov)-[a-z]{1,16}-[0-9]{1,2}\.amazonaws\.com|cn-[a-z]{1,16}-[0-9]{1,2}\.amazonaws\.com\.cn|eusc-de-[a-z]{1,16}-[0-9]{1,2}\.amazonaws\.eu|us-iso-[a-z]{1,16}-[0-9]{1,2}\.c2s\.ic\.gov|us-isob-[a-z]{1,16}-[0-9]{1,2}\.sc2s\.sgov\.gov|eu-isoe-[a-z]{1,16}-[0-9]{1,2}\.cloud\.adc-e\.uk|us-isof-[a-z]{1,16}-[0-9]{1,2}\.csp\.hci\.ic\.gov)|dkr-ecr(-fips)?\.((([abd-z][a-z]|c[a-mo-z])|us-gov)-[a-z]{1,16}-[0-9]{1,2}\.on\.aws|cn-[a-z]{1,16}-[0-9]{1,2}\.on\.amazonwebservices\.com\.cn))(:([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?$
{{- end -}}

{{- define "ecr-injector.noRegistryPattern" -}}
\.(us-(gov|isob?|isof)|eu-isoe)-[0-9]{1,2}\.
{{- end -}}
