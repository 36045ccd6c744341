"""What a rule does and what it breaks: properties, a failure with its smallest counterexample."""

from .instances import Case as Case
from .report import Report as Report
from .report import Row as Row
from .run import audit as audit
